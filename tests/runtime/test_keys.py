"""Key files: made once, read only where nobody else can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeshard.errors import InputError
from edgeshard.runtime.channel import KeyPair
from edgeshard.runtime.keys import load_keys, make_keys


def test_a_pair_is_read_back_and_its_files_have_their_modes(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    before = os.umask(0)
    try:
        made = make_keys(folder, "phone")
    finally:
        os.umask(before)
    assert load_keys(folder / "phone.secret") == made
    assert (folder / "phone.public").read_text().strip() == made.public
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "phone.secret")]
    assert modes == [0o700, 0o600]


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", "phone")
    with pytest.raises(InputError, match="never overwritten"):
        make_keys(tmp_path / "keys", "phone")


def test_a_secret_does_not_show_in_a_representation() -> None:
    pair = KeyPair.generate()
    assert pair.secret not in repr(pair)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path / "keys", "phone")
    (tmp_path / "keys" / "phone.secret").chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        load_keys(tmp_path / "keys" / "phone.secret")


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, "phone")
    folder.chmod(0o755)
    with pytest.raises(InputError, match="0755"):
        load_keys(folder / "phone.secret")
    with pytest.raises(InputError, match="0755"):
        make_keys(folder, "tablet")


def test_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, "phone")
    (folder / "link.secret").symlink_to(folder / "phone.secret")
    with pytest.raises(InputError, match="link"):
        load_keys(folder / "link.secret")


def test_a_public_file_is_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    (folder / "x.secret").write_text("not a key\n")
    (folder / "x.secret").chmod(0o600)
    with pytest.raises(InputError, match="no secret key"):
        load_keys(folder / "x.secret")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\0b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="key name"):
        make_keys(tmp_path / "keys", name)

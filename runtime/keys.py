"""Key files: one secret and one public file per name.

    FOLDER            0700
    FOLDER/NAME.secret  0600, made once, never overwritten
    FOLDER/NAME.public  0644, what goes into cluster.toml

Rule: a secret is read from a file that only its owner can read, and from nowhere else: not from the
command line, not from the environment.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from edgeshard.errors import InputError
from edgeshard.runtime.channel import KeyPair
from edgeshard.system import HAS_MODES, current_user, open_plain, set_mode

MAX_KEY_FILE_BYTES = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def make_keys(folder: Path, name: str) -> KeyPair:
    """Make a key pair and write its two files.

    Args:
        folder: where; made with mode 0700 where it is missing.
        name: of the device or person.

    Raises:
        InputError: the name is no file name, the pair exists, or the folder is open to others.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"key name {name!r} is not letters, digits, '.', '_' or '-' (at most 64)")
    pair = KeyPair.generate()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(folder)
        _write_new(folder / f"{name}.secret", pair.secret, 0o600)
        _write_new(folder / f"{name}.public", pair.public, 0o644)
    except FileExistsError as error:
        raise InputError(
            f"{error.filename} exists; keys are never overwritten: choose another name or folder"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write keys to {folder}: {error.strerror}") from error
    return pair


def load_keys(path: Path) -> KeyPair:
    """Read a secret key file.

    Args:
        path: the `.secret` file.

    Raises:
        InputError: missing, a link, not ours, readable by others, or no key.
    """
    _check_folder(path.parent)
    try:
        handle = open_plain(path)
    except OSError as error:
        hint = "a link is not followed" if path.is_symlink() else "make it with `esc keys NAME`"
        raise InputError(f"cannot read key {path}: {error.strerror}; {hint}") from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"key {path} is not a plain file")
        if HAS_MODES and found.st_uid != current_user():
            raise InputError(f"key {path} belongs to user {found.st_uid}, not to {current_user()}")
        if HAS_MODES and found.st_mode & 0o077:
            raise InputError(
                f"key {path} has mode {stat.S_IMODE(found.st_mode):04o}, at most 0600 is "
                f"allowed: chmod 600 {path}"
            )
        text = file.read(MAX_KEY_FILE_BYTES)
    try:
        return KeyPair.of_secret(text.decode("ascii").strip())
    except ValueError as error:
        raise InputError(f"{path} holds no secret key; give the NAME.secret file") from error


def _check_folder(folder: Path) -> None:
    if not HAS_MODES:
        return
    try:
        found = folder.stat()
    except OSError as error:
        raise InputError(f"cannot read key folder {folder}: {error.strerror}") from error
    if found.st_uid not in (current_user(), 0):
        raise InputError(f"key folder {folder} belongs to user {found.st_uid}, not to you")
    if found.st_mode & 0o077:
        raise InputError(
            f"key folder {folder} has mode {stat.S_IMODE(found.st_mode):04o}, at most 0700 is "
            f"allowed: use a folder of its own, or chmod 700 {folder}"
        )


def _write_new(path: Path, text: str, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        if HAS_MODES:
            set_mode(path, handle, mode)
        file.write(text + "\n")
        file.flush()
        os.fsync(handle)

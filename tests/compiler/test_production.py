"""What is done is not done again: after a compile, after a kill, beside another compile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler import stored
from edgeshard.compiler.blob import write_blob
from edgeshard.compiler.compile import compile_model
from edgeshard.errors import ArtifactError, InputError
from edgeshard.schemas.common import Precision
from support.gguf_file import MIXED, write_gguf
from support.tiny_llama import NUM_BLOCKS, compiled, folder, save

NUM_UNITS = NUM_BLOCKS + 2
CHILD = """
import os, signal, sys
from pathlib import Path
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model

def watch(progress):
    if progress.step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

print(compile_model(
    Path(sys.argv[1]), Store(Path(sys.argv[2])), precision="int4", jobs=1, on_progress=watch
).blob.digest)
"""


def _child(store: Path, killed_at: str = "never") -> subprocess.Popen[str]:
    arguments = [str(folder("multi_head")), str(store), killed_at]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
    )


def _inodes(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (store / "blobs").glob("*.safetensors")}


def test_compiling_again_encodes_nothing_and_changes_nothing(tmp_path: Path) -> None:
    first = compile_model(folder("grouped"), Store(tmp_path), precision="int4")
    before = _inodes(tmp_path)

    again = compile_model(folder("grouped"), Store(tmp_path), precision="int4")

    assert (first.num_reused, again.num_reused) == (0, NUM_UNITS)
    assert again.blob == first.blob
    # The rotary tables are made anew each time, the same bytes under the same name.
    changed = {name for name, inode in _inodes(tmp_path).items() if before[name] != inode}
    assert len(changed) <= 1


def test_another_target_reuses_all_weights(tmp_path: Path) -> None:
    compile_model(folder("grouped"), Store(tmp_path), precision="int4")

    assert (
        compile_model(
            folder("grouped"), Store(tmp_path), precision="int4", target="portable"
        ).num_reused
        == NUM_UNITS
    )


def test_another_precision_shares_what_it_can(tmp_path: Path) -> None:
    models = []
    for precision in ("int4", "int8"):
        chosen: Precision = precision
        models.append(compile_model(folder("multi_head"), Store(tmp_path), precision=chosen))

    four, eight = ({b for u in m.manifest.units for b in u.weights} for m in models)

    assert models[1].num_reused == 0
    assert len(four & eight) == 1  # rotary tables


def test_a_checkpoint_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = save("grouped", tmp_path / "checkpoint")
    first = compile_model(path, Store(tmp_path / "store"))
    weights = path / "model.safetensors"
    os.utime(weights, ns=(0, 0))

    again = compile_model(path, Store(tmp_path / "store"))

    assert again.num_reused == 0
    assert again.blob == first.blob


def test_a_note_of_a_lost_blob_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = compile_model(folder("grouped"), store)
    store.path(first.manifest.units[1].weights[0]).unlink()

    again = compile_model(folder("grouped"), store)

    assert again.num_reused == NUM_UNITS - 1
    assert again.blob == first.blob
    store.verify(again.manifest.blobs())


def test_a_killed_compile_goes_on_where_it_was(tmp_path: Path) -> None:
    """With one job, two threads work on units once the digest is known: two of three are done."""
    child = _child(tmp_path, killed_at="block.2")
    child.communicate(timeout=200)
    assert child.returncode == -signal.SIGKILL
    before = _inodes(tmp_path)
    assert Store(tmp_path).models() == []

    resumed = compile_model(folder("multi_head"), Store(tmp_path), precision="int4")

    assert 2 <= resumed.num_reused < NUM_UNITS
    after = _inodes(tmp_path)
    assert sum(after[name] == inode for name, inode in before.items()) >= resumed.num_reused
    assert resumed.manifest.units == compiled("multi_head", "int4").manifest.units


def test_two_compiles_into_one_store_at_once_agree(tmp_path: Path) -> None:
    children = [_child(tmp_path), _child(tmp_path)]
    digests = [child.communicate(timeout=200)[0] for child in children]

    assert [child.returncode for child in children] == [0, 0]
    assert digests[0] == digests[1]
    store = Store(tmp_path)
    manifest, blob = store.model(store.models()[0])
    assert blob.digest == digests[0].strip()
    store.verify(manifest.blobs())
    assert list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize("piece_bytes", [1, 300, 2**12])
def test_pieces_of_any_size_give_the_same_model(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "mixed.gguf", MIXED)
    whole = [
        compile_model(file.path, Store(tmp_path / "a"), precision=precision).blob
        for precision in (None, "int4")
    ]
    monkeypatch.setattr(stored, "PIECE_BYTES", piece_bytes)

    pieces = [
        compile_model(file.path, Store(tmp_path / "b"), precision=precision).blob
        for precision in (None, "int4")
    ]

    assert pieces == whole


def test_a_disk_with_too_little_room_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 1000, 0))

    with pytest.raises(ArtifactError, match=r"needs \d{5,} more bytes, the disk has 0; free space"):
        compile_model(folder("grouped"), Store(tmp_path))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_checkpoint_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("grouped", tmp_path / "checkpoint")

    def touched(*arguments: object) -> object:
        os.utime(path / "config.json", ns=(0, 0))
        return write_blob(*arguments)  # type: ignore[arg-type]  # passed through as they came

    monkeypatch.setattr("edgeshard.compiler.production.write_blob", touched)

    with pytest.raises(InputError, match=r"changed during the compile; run it again"):
        compile_model(path, Store(tmp_path / "store"))
    assert Store(tmp_path / "store").models() == []

"""Notes of whole compiles: the same command again does nothing, not even import torch.

A note's key says everything that decides what comes out: the checkpoint's files as they lie on the
disk, the wishes, our own code and the versions of the packages that have a part in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, InputError
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.note import ModelNote

# The runtime too: its session shows keys and values for int8.
_CODE = tuple(
    f"edgeshard{part}" for part in ("", ".artifacts", ".compiler", ".runtime", ".schemas")
)
_PACKAGES = (
    *("gguf", "llvmlite", "ml_dtypes", "numba", "numpy", "onnx", "onnxruntime", "onnxscript"),
    *("optimum", "protobuf", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers"),
)


@dataclass(frozen=True)
class Compiled:
    """A compiled model, remarks that a person should see, and how many units were made before."""

    manifest: ModelManifest
    blob: Blob
    notices: tuple[str, ...]
    num_reused: int


def key_of(path: Path, wishes: Mapping[str, object]) -> str | None:
    """Name of the note of a compile.

    Args:
        path: of the checkpoint.
        wishes: whatever else is asked for, of types whose `repr` says all.

    Returns:
        None where the path cannot be read: a hub id, or a mistake, of which compiling tells.
    """
    try:
        files = [path]
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.is_file()]
        stamps = [stamp(file) for file in files]
    except OSError:
        return None
    text = repr((stamps, sorted(wishes.items()), _code(), _versions()))
    return f"model-{hashlib.sha256(text.encode()).hexdigest()}"


def stamp(file: Path) -> tuple[str, int, int, int]:
    """What changes when a file is written anew: cheap, where a digest would read everything."""
    found = file.stat()
    return str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ino


def find(store: Store, key: str) -> Compiled | None:
    """What a compile left, where all of it is still in the store; its name stands for it again."""
    note = store.note(key, ModelNote)
    if note is None or not store.has(note.blob):
        return None
    try:
        manifest = store.manifest(note.blob)
    except (ArtifactError, InputError):  # changed, or of another version: the compile tells
        return None
    if not all(store.has(blob) for blob in manifest.blobs()):
        return None
    return Compiled(manifest, store.put_model(manifest), note.notices, len(manifest.units))


def leave(store: Store, key: str, compiled: Compiled) -> None:
    """Note what a compile made."""
    store.put_note(key, ModelNote(blob=compiled.blob, notices=compiled.notices))


def _code() -> str:
    """Digest of our own modules that have a part in it."""
    digest = hashlib.sha256()
    for package in _CODE:
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found

"""Read and write the files that a schema describes.

A file is checked against its JSON Schema first, so that the error names the place, and only then
becomes a typed value. An unknown major version is refused by name. Files are written whole or not
at all.
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import msgspec

from edgeshard.errors import InputError
from edgeshard.schemas.accuracy import Accuracy
from edgeshard.schemas.cluster import Cluster
from edgeshard.schemas.common import Blob, Schema
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.note import ModelNote, SourceNote, WeightsNote
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile
from edgeshard.schemas.shard import ShardManifest

KINDS: dict[str, type[Schema]] = {
    "model": ModelManifest,
    "shard": ShardManifest,
    "blob": Blob,
    "cluster": Cluster,
    "profile": Profile,
    "plan": Plan,
    "accuracy": Accuracy,
    "weights": WeightsNote,
    "source": SourceNote,
    "compiled": ModelNote,
}
MAX_FILE_BYTES = 64 * 2**20

T = TypeVar("T", bound=Schema)


def schema_text(kind: type[Schema]) -> str:
    """The text of the JSON Schema of a file kind, made from its type."""
    (root,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "$defs": {name: components[name] for name in sorted(components)},
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@cache
def _validator(name: str) -> Any:
    text = resources.files("edgeshard.schemas").joinpath("json", f"{name}.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def encode(value: Schema) -> bytes:
    """The canonical bytes of a value: readable JSON, the same for equal values."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes, kind: type[T], name: str) -> T:
    """Make a value of `kind` from JSON bytes.

    Args:
        data: the bytes.
        kind: the expected type.
        name: what to call the bytes in an error.

    Raises:
        InputError: not JSON, another kind or major version, or not what the schema says.
    """
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}; write it again") from error
    return convert(plain, kind, name)


def convert(plain: object, kind: type[T], name: str) -> T:
    """Make a value of `kind` from plain objects; see `decode`."""
    short = next(key for key, value in KINDS.items() if value is kind)
    expected = f"edgeshard.{short}/1"
    found = plain.get("format", expected) if isinstance(plain, dict) else type(plain).__name__
    if found != expected:
        raise InputError(f"{name} has format {found!r}, this version reads {expected!r}")
    problem = jsonschema.exceptions.best_match(_validator(short).iter_errors(plain))
    if problem is not None:
        place = problem.json_path.removeprefix("$").lstrip(".") or "the file"
        raise InputError(f"{name}: {place}: {problem.message[:200]}")
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {error}") from error


def read(path: Path, kind: type[T]) -> T:
    """Read a JSON file, or a TOML file by its suffix.

    Raises:
        InputError: see `decode`; also where the file is missing or larger than 64 MiB.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size} bytes, at most {MAX_FILE_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix != ".toml":
        return decode(data, kind, str(path))
    try:
        plain = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    return convert(plain, kind, str(path))


def write(path: Path, value: Schema) -> None:
    """Write a value as JSON: the whole file or none.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(encode(value))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error

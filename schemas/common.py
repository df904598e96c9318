"""Building blocks of every schema: names, digests, keys and blobs.

Each type carries its limits, so that the JSON Schema made from it refuses what the type refuses.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from msgspec import Meta, Struct, structs

Name = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="A name safe as a file name."),
]
Digest = Annotated[
    str, Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="Digest of a blob's bytes.")
]
CheckpointDigest = Annotated[
    str,
    Meta(
        pattern=r"^(sha256|blake3):[0-9a-f]{64}$",
        description="Digest of a checkpoint's files: sha256 of a GGUF file, BLAKE3 of a folder.",
    ),
]
PublicKey = Annotated[
    str, Meta(min_length=40, max_length=40, description="A CURVE public key in Z85.")
]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]

Target = Literal["ort", "portable", "tensorrt"]
FloatType = Literal["float32", "float16", "bfloat16"]
CacheType = Literal["float32", "float16", "bfloat16", "int8"]
Precision = Literal["stored", "fp32", "fp16", "bf16", "int8", "int4", "mixed"]
Floor = Literal["int4", "int8", "fp16", "fp32"]
Objective = Literal["latency", "throughput"]
Transfers = Literal["overlapped", "blocking"]
Activation = Literal["fp32", "fp16", "int8"]
UnitKind = Literal["embedding", "block", "head"]

CACHE_BYTES: dict[CacheType, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


class Schema(Struct, frozen=True, kw_only=True):
    """Base of everything that is read from or written to a file. Unknown fields are ignored."""


T = TypeVar("T", bound=Schema)


def changed(value: T, **fields: object) -> T:
    """The same value with other fields."""
    return structs.replace(value, **fields)


class Blob(Schema, frozen=True, kw_only=True):
    """A content-addressed file of a store.

    Attributes:
        digest: sha256 of the bytes.
        size_bytes: length of the file.
        suffix: what the bytes are; part of the file name, so that standard tools open it.
    """

    digest: Digest
    size_bytes: Count
    suffix: Literal[".json", ".jinja", ".onnx", ".safetensors"]

    @property
    def filename(self) -> str:
        """Name of the file in a store's blob folder."""
        return self.digest.removeprefix("sha256:") + self.suffix

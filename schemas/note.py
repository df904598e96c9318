"""Notes of a compile in a store: what spares the next one work. They may be deleted at any time."""

from __future__ import annotations

from typing import Literal

from edgeshard.schemas.common import Blob, CheckpointDigest, Count, Schema


class TensorPlace(Schema, frozen=True, kw_only=True):
    """Where a tensor lies in its blob."""

    name: str
    offset: Count
    length: Count


class WeightsNote(Schema, frozen=True, kw_only=True):
    """The blob that came out of a recipe: which tensors, from which files, in which encodings."""

    format: Literal["edgeshard.weights/1"] = "edgeshard.weights/1"
    blob: Blob
    tensors: tuple[TensorPlace, ...]


class ModelNote(Schema, frozen=True, kw_only=True):
    """The manifest that a compile left, and what it had to remark."""

    format: Literal["edgeshard.compiled/1"] = "edgeshard.compiled/1"
    blob: Blob
    notices: tuple[str, ...] = ()


class SourceNote(Schema, frozen=True, kw_only=True):
    """The digest of a checkpoint whose files have not changed since."""

    format: Literal["edgeshard.source/1"] = "edgeshard.source/1"
    digest: CheckpointDigest

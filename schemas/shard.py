"""The shard manifest: contiguous units fused into one graph, ready for one stage."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeshard.schemas.common import (
    Blob,
    Count,
    Digest,
    FloatType,
    Positive,
    Precision,
    Schema,
    Target,
)
from edgeshard.schemas.model import KvSpec, ModelManifest


class ShardManifest(Schema, frozen=True, kw_only=True):
    """Units `[start, stop)` of a model as one ONNX graph over the units' own weight blobs.

    Attributes:
        model: digest of the model manifest.
        num_units: units of the whole model; the shard has the head when `stop == num_units`.
        graph: takes `token_ids` (`start == 0`) or `hidden.START`; gives `logits` or `hidden.STOP`.
        weights: every blob that the graph points into.
        opset, min_runtime, activations: as in the model's manifest.
        provider_options: for the provider that the target was made for, by name; folders are
            relative to one that the device chooses.
    """

    format: Literal["edgeshard.shard/1"] = "edgeshard.shard/1"
    model: Digest
    target: Target
    precision: Precision
    start: Count
    stop: Positive
    num_units: Positive
    graph: Blob
    weights: tuple[Blob, ...]
    hidden_size: Positive
    vocab_size: Positive
    max_context: Positive
    kv: KvSpec
    opset: Positive | None = None
    min_runtime: str = ""
    activations: FloatType = "float32"
    provider_options: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: ModelManifest,
        digest: Digest,
        units: range,
        graph: Blob,
        weights: tuple[Blob, ...],
    ) -> ShardManifest:
        """Units of a model, whose manifest has this digest, as one graph."""
        return cls(
            model=digest,
            target=model.target,
            precision=model.precision,
            start=units.start,
            stop=units.stop,
            num_units=len(model.units),
            graph=graph,
            weights=weights,
            hidden_size=model.hidden_size,
            vocab_size=model.vocab_size,
            max_context=model.max_context,
            kv=model.kv,
            opset=model.opset,
            min_runtime=model.min_runtime,
            activations=model.activations,
        )

    @property
    def has_embedding(self) -> bool:
        """Whether the shard takes token ids."""
        return self.start == 0

    @property
    def has_head(self) -> bool:
        """Whether the shard gives logits."""
        return self.stop == self.num_units

    @property
    def blocks(self) -> range:
        """Indices of the shard's decoder blocks in the model."""
        return range(max(self.start, 1) - 1, min(self.stop, self.num_units - 1) - 1)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weight blobs."""
        return sum(blob.size_bytes for blob in self.weights)

    def kv_bytes(self, context: int, slots: int) -> int:
        """Bytes of keys and values for `slots` sequences of `context` positions."""
        return len(self.blocks) * self.kv.bytes_per_token() * context * slots

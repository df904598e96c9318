"""The model manifest: what `esc compile` made of a checkpoint.

    embedding ── block 0 ── block 1 ── … ── block N-1 ── head
    unit 0       unit 1     unit 2          unit N       unit N+1

A unit is one ONNX graph whose initializers point into safetensors blobs of the same store. Two
units of the same `structure` differ in their weights only.
"""

from __future__ import annotations

from typing import Literal

from edgeshard.schemas.common import (
    Blob,
    Count,
    Digest,
    Name,
    Positive,
    Precision,
    Schema,
    Target,
    UnitKind,
)


class KvSpec(Schema, frozen=True, kw_only=True):
    """How a block keeps its keys and values, fp32, axes `[batch, head, position, channel]`.

    Attributes:
        layout: `static`: one buffer of the whole context is both input and output and is written in
            place; `append`: the output is the input with the new positions behind it.
        num_kv_heads: heads of keys and of values.
        head_dim: channels of a head.
    """

    layout: Literal["static", "append"]
    num_kv_heads: Positive
    head_dim: Positive

    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one block keeps for one position."""
        return 2 * self.num_kv_heads * self.head_dim * 4


class Unit(Schema, frozen=True, kw_only=True):
    """One unit of the model: a graph of its own, with the blobs that hold its weights.

    Attributes:
        name: `embedding`, `block.7` or `head`.
        graph: the ONNX file; takes `hidden.I` (or `token_ids`), gives `hidden.I+1` (or `logits`).
        weights: safetensors blobs that the graph points into; units may share some.
        structure: digest of the graph without places and weights; equal for equal work.
        num_parameters: weights counted once each, as the checkpoint counts them.
    """

    name: Name
    kind: UnitKind
    graph: Blob
    weights: tuple[Blob, ...]
    structure: Digest
    num_parameters: Count


class Source(Schema, frozen=True, kw_only=True):
    """What a model was compiled from; part of its manifest."""

    kind: Literal["gguf", "safetensors"]
    digest: Digest


class ModelManifest(Schema, frozen=True, kw_only=True):
    """A compiled model: its units in order and what travels with them.

    Attributes:
        opset: version of the standard ONNX operators in the graphs.
        max_context: positions that the rotary tables cover.
        eos_token_ids: tokens that end an answer.
        tokenizer: `tokenizer.json` of the `tokenizers` package.
        chat_template: Jinja text, where the checkpoint has one.
        special_tokens: names that the template may use (`bos_token`, `eos_token`) and their text.
    """

    format: Literal["edgeshard.model/1"] = "edgeshard.model/1"
    name: Name
    architecture: str
    target: Target
    precision: Precision
    opset: Positive
    num_blocks: Positive
    hidden_size: Positive
    vocab_size: Positive
    max_context: Positive
    kv: KvSpec
    units: tuple[Unit, ...]
    tokenizer: Blob | None
    chat_template: Blob | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[Count, ...]
    source: Source

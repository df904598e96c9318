"""The model manifest: what `esc compile` made of a checkpoint.

    embedding ── block 0 ── block 1 ── … ── block N-1 ── head
    unit 0       unit 1     unit 2          unit N       unit N+1

A unit is one ONNX graph whose initializers point into safetensors blobs of the same store. Two
units of the same `structure` differ in their weights only.

A model may hold the same units for several targets. `units` are those of the first one; each of
`variants` has graphs of its own over, as far as the encodings agree, the same blobs. Who works with
one target takes the manifest's `view` of it, which is a manifest of that target alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeshard.schemas.common import (
    CACHE_BYTES,
    Blob,
    CacheType,
    CheckpointDigest,
    Count,
    Digest,
    FloatType,
    Name,
    Positive,
    Precision,
    Schema,
    Target,
    UnitKind,
)


class KvSpec(Schema, frozen=True, kw_only=True):
    """How a block keeps its keys and values, axes `[batch, head, position, channel]`.

    Attributes:
        layout: `static`: one buffer of the whole context is both input and output and is written in
            place; `append`: the output is the input with the new positions behind it; `copy`: the
            output is the input, `context` positions long, with the new ones written into it.
        num_kv_heads: heads of keys and of values.
        head_dim: channels of a head.
        dtype: of each value; of `int8` the graphs hold a scale for every channel.
        context: positions that the graphs are made for; None: any.
        max_step: most new positions of one step; None: any.
    """

    layout: Literal["static", "append", "copy"]
    num_kv_heads: Positive
    head_dim: Positive
    dtype: CacheType = "float32"
    context: Positive | None = None
    max_step: Positive | None = None

    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one block keeps for one position."""
        return 2 * self.num_kv_heads * self.head_dim * CACHE_BYTES[self.dtype]


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


class Variant(Schema, frozen=True, kw_only=True):
    """The units of a model for one more target; fields as in the manifest."""

    target: Target
    opset: Positive
    min_runtime: str
    kv: KvSpec
    units: tuple[Unit, ...]


class Source(Schema, frozen=True, kw_only=True):
    """What a model was compiled from; part of its manifest."""

    kind: Literal["gguf", "safetensors"]
    digest: CheckpointDigest


class Generation(Schema, frozen=True, kw_only=True):
    """What a checkpoint says of generating, where a request says nothing; None: not said.

    Attributes:
        do_sample: tokens are drawn; else the likeliest is taken, and `temperature`, `top_k` and
            `top_p` say nothing.
        temperature: 0 takes the likeliest token.
        top_k: candidates at most; 0: all.
        top_p: smallest set of candidates with this probability.
        repetition_penalty: of tokens in the prompt or the answer; 1: none.
        max_new_tokens: of an answer at most.
    """

    do_sample: bool = False
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None


class ModelManifest(Schema, frozen=True, kw_only=True):
    """A compiled model: its units in order and what travels with them.

    Attributes:
        target: whose operators `units` are made of.
        opset: version of the standard ONNX operators in the graphs.
        min_runtime: first ONNX Runtime release that reads the graphs; empty where not recorded.
        activations: type of what flows within a unit; between units it is always float32.
        max_context: positions that the rotary tables cover.
        eos_token_ids: tokens that end an answer.
        generation: defaults of requests.
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
    min_runtime: str = ""
    activations: FloatType = "float32"
    variants: tuple[Variant, ...] = ()
    generation: Generation = Generation()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target that the model was compiled for, the first one first."""
        return (self.target, *(variant.target for variant in self.variants))

    def view(self, target: Target) -> ModelManifest:
        """The manifest of one of `targets` alone.

        Raises:
            KeyError: the model was not compiled for it.
        """
        if target == self.target:
            return msgspec.structs.replace(self, variants=())
        for variant in self.variants:
            if variant.target == target:
                return msgspec.structs.replace(self, **msgspec.structs.asdict(variant), variants=())
        raise KeyError(target)

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob that the manifest names, each once."""
        units = [unit for target in self.targets for unit in self.view(target).units]
        named = [blob for unit in units for blob in (unit.graph, *unit.weights)]
        named += [blob for blob in (self.tokenizer, self.chat_template) if blob is not None]
        return tuple(dict.fromkeys(named))

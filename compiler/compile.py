"""Checkpoint to compiled model: the order of it all.

    open → trace one block → choose encodings → write each unit's weights, then its graph → manifest

The manifest is published last: what an interrupted compile leaves behind is unnamed blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from optimum.utils import NormalizedConfigManager

from edgeshard.artifacts.skip_norm import SkipNormPass
from edgeshard.artifacts.store import Store
from edgeshard.compiler.assets import rotary_tables, write_text_assets
from edgeshard.compiler.blob import WrittenBlob, write_blob
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.encoding import (
    FLOAT,
    STORED,
    Array,
    Encoding,
    block_encoding,
    import_gguf,
    quantise,
)
from edgeshard.compiler.graph import Extent, GraphBuilder
from edgeshard.compiler.lower_ort import OrtLowering
from edgeshard.compiler.lower_portable import PortableLowering
from edgeshard.compiler.lowering import (
    Lowering,
    Shape,
    joined_name,
    linear_groups,
    precision_bits,
)
from edgeshard.compiler.semantic import fold_scale, pack_attention
from edgeshard.compiler.trace import trace_block
from edgeshard.errors import InputError
from edgeshard.schemas.common import Blob, Precision, Target, UnitKind
from edgeshard.schemas.model import KvSpec, ModelManifest, Source, Unit

LOWERINGS: dict[Target, type[Lowering]] = {"ort": OrtLowering, "portable": PortableLowering}
QUANTISED_AS_BYTES = "Q"  # GGUF's block types all start so; those we cannot import become int8


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of the checkpoint's parameters are behind."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class Compiled:
    """A compiled model and the remarks that a person should see."""

    manifest: ModelManifest
    blob: Blob
    notices: tuple[str, ...]


def compile_model(
    path: Path,
    store: Store,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    target: Target = "ort",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Compiled:
    """Compile a checkpoint into units in a store.

    Args:
        path: a Hugging Face folder or a .gguf file.
        store: where blobs and manifest go.
        name: of the model in the store; None: from the path, precision and target.
        precision: None: as stored for a quantised GGUF, else fp32.
        target: whose operators to use.
        on_progress: told at every unit.

    Raises:
        InputError: the checkpoint cannot be used; nothing was named in the store.
        ArtifactError: the store cannot be written.
    """
    on_progress(Progress("reading the checkpoint", 0, 1))
    checkpoint = open_checkpoint(path)
    return _Compilation(checkpoint, store, precision, target, on_progress).run(name)


class _Compilation:
    def __init__(
        self,
        checkpoint: Checkpoint,
        store: Store,
        precision: Precision | None,
        target: Target,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.checkpoint = checkpoint
        self.store = store
        self.target: Target = target
        self.report = on_progress
        self.config = checkpoint.config
        sizes = NormalizedConfigManager.get_normalized_config_class(self.config.model_type)(
            self.config
        )
        self.num_blocks = int(sizes.num_layers)
        heads = int(sizes.num_attention_heads)
        self.shape = Shape(
            hidden_size=int(sizes.hidden_size),
            vocab_size=int(sizes.vocab_size),
            num_heads=heads,
            num_kv_heads=int(sizes.num_key_value_heads),
            head_dim=int(getattr(self.config, "head_dim", None) or sizes.hidden_size // heads),
            max_context=int(self.config.max_position_embeddings),
        )
        quantised = any(checkpoint.stored_type(weight) in STORED for weight in checkpoint.names())
        self.precision: Precision = precision or ("stored" if quantised else "fp32")
        self.tied = "lm_head.weight" not in checkpoint.names()
        self.notices: list[str] = []
        self.total = 0
        self.done = 0
        self.structures: dict[tuple[object, ...], str] = {}

    def run(self, name: str | None) -> Compiled:
        self.report(Progress("tracing the block", 0, 1))
        self.block_nodes, self.rotary_factor = fold_scale(pack_attention(trace_block(self.config)))
        matrices = self._check_names()
        self.encodings = {weight: self._choose(weight) for weight in matrices}
        self.lowering = LOWERINGS[self.target](self.shape, self.encodings)
        self.total = sum(
            int(np.prod(self.checkpoint.shape(weight))) for weight in self.checkpoint.names()
        )
        self.shared = self._shared_blobs()
        units = [self._embedding()]
        units += [self._block(index) for index in range(self.num_blocks)]
        units.append(self._head())
        self.report(Progress("tokenizer", self.total, self.total))
        text = write_text_assets(self.store, self.checkpoint)
        manifest = ModelManifest(
            name=name or self._default_name(),
            architecture=str(self.config.model_type),
            target=self.target,
            precision=self.precision,
            opset=self.lowering.opset,
            num_blocks=self.num_blocks,
            hidden_size=self.shape.hidden_size,
            vocab_size=self.shape.vocab_size,
            max_context=self.shape.max_context,
            kv=KvSpec(
                layout=self.lowering.kv_layout,
                num_kv_heads=self.shape.num_kv_heads,
                head_dim=self.shape.head_dim,
            ),
            units=tuple(units),
            tokenizer=text.tokenizer,
            chat_template=text.chat_template,
            special_tokens=text.special_tokens,
            eos_token_ids=text.eos_token_ids,
            source=Source(kind=self.checkpoint.kind, digest=self.checkpoint.digest()),
        )
        return Compiled(manifest, self.store.put_model(manifest), tuple(self.notices))

    def _default_name(self) -> str:
        stem = self.checkpoint.path.name.removesuffix(".gguf")
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-")
        suffix = f"-{self.precision}" + ("" if self.target == "ort" else f"-{self.target}")
        return f"{(plain or 'model')[: 64 - len(suffix)]}{suffix}"

    def _check_names(self) -> list[str]:
        """Compare the checkpoint's tensors with what the traced block reads; list the matrices."""
        linears = [node for node in self.block_nodes if node.operator == "Linear"]
        norms = [node for node in self.block_nodes if node.operator == "RMSNorm"]
        expected: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (self.shape.vocab_size, self.shape.hidden_size),
            "norm.weight": (self.shape.hidden_size,),
        }
        if not self.tied:
            expected["lm_head.weight"] = (self.shape.vocab_size, self.shape.hidden_size)
        elif not self.config.tie_word_embeddings:
            raise InputError(f"{self.checkpoint.path} has no lm_head.weight and is not tied")
        for index in range(self.num_blocks):
            prefix = f"layers.{index}."
            for node in norms:
                expected[f"{prefix}{node.text('weight')}.weight"] = (self.shape.hidden_size,)
            for node in linears:
                rows = node.integers("out_features")
                for weight, count in zip(node.names("weights"), rows, strict=True):
                    expected[prefix + weight] = (count, node.integer("in_features"))
                for bias, count in zip(
                    node.names("biases"), rows, strict=bool(node.names("biases"))
                ):
                    expected[prefix + bias] = (count,)
        found = self.checkpoint.names()
        missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
        extra = [weight for weight in extra if not weight.endswith("rotary_emb.inv_freq")]
        if missing or extra:
            what = f"lacks {missing[0]}" if missing else f"has an unknown tensor {extra[0]}"
            raise InputError(
                f"{self.checkpoint.path} {what} ({len(missing)} missing, {len(extra)} unknown)"
            )
        for weight, shape in expected.items():
            if self.checkpoint.shape(weight) != shape:
                actual = self.checkpoint.shape(weight)
                raise InputError(
                    f"tensor {weight} of {self.checkpoint.path} is {actual}, "
                    f"its configuration says {shape}"
                )
        return [weight for weight, shape in expected.items() if len(shape) == 2]

    def _choose(self, weight: str) -> Encoding:
        """The encoding of a matrix: as stored where the bits agree, else converted."""
        stored = self.checkpoint.stored_type(weight)
        columns = self.checkpoint.shape(weight)[1]
        encoding = STORED.get(stored)
        if self.precision == "fp32":
            return FLOAT
        if self.precision == "stored":
            if encoding is not None:
                return encoding
            if not stored.startswith(QUANTISED_AS_BYTES):
                return FLOAT
            self._notice(f"{stored} tensors are converted to int8")
            return block_encoding(8, columns)
        bits = precision_bits(self.precision)
        if encoding is not None and encoding.bits == bits and encoding.kind == "blocks":
            return encoding
        if stored.startswith(QUANTISED_AS_BYTES):
            self._notice(f"{stored} tensors are requantised to {self.precision}")
        chosen = block_encoding(bits, columns)
        if chosen == FLOAT:
            self._notice(f"rows of {columns} are no multiple of 16 and stay fp32")
        return chosen

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)

    # Units

    def _shared_blobs(self) -> dict[str, WrittenBlob]:
        """Blobs that several units point into: rotary tables, and zero points where needed."""
        rope = rotary_tables(self.config, self.rotary_factor)
        layout = {name: (np.float32, table.shape) for name, table in rope.items()}
        shared = {"rope": write_blob(self.store, layout, rope.items())}
        if self.target == "portable":
            for bits in sorted({e.bits for e in self.encodings.values() if e.kind != "float"}):
                zeros = np.full(self._most_zeros(bits), {4: 0x88, 8: 0x80}[bits], np.uint8)
                shared[f"zeros{bits}"] = write_blob(
                    self.store, {"zeros": (np.uint8, zeros.shape)}, [("zeros", zeros)]
                )
        return shared

    def _most_zeros(self, bits: int) -> int:
        """Bytes of zero points of the largest product; one may take several matrices together."""
        ends = {weight for weight in self.encodings if not weight.startswith("layers.")}
        products: list[list[str]] = [[weight] for weight in sorted(ends)]
        for index in range(self.num_blocks):
            prefix = f"layers.{index}."
            for node in self.block_nodes:
                if node.operator == "Linear":
                    groups = linear_groups(node, self.encodings, prefix)
                    products += [[prefix + name for name in names] for names, _ in groups]
        sizes = [0]
        for weights in products:
            encoding = self.encodings[weights[0]]
            if encoding.kind != "float" and encoding.bits == bits:
                values = sum(int(np.prod(self.checkpoint.shape(weight))) for weight in weights)
                sizes.append(-(-values // encoding.block * bits // 8))
        return max(sizes)

    def _embedding(self) -> Unit:
        self._progress("embedding")
        groups = [(("embed_tokens.weight",), "")]
        self.shared["embedding"] = self._write("embedding", groups, [])
        graph = self.lowering.embedding()
        return self._unit("embedding", graph, ["embed_tokens.weight"], "embedding")

    def _block(self, index: int) -> Unit:
        place, prefix = f"block.{index}", f"layers.{index}."
        self._progress(place)
        groups: list[tuple[tuple[str, ...], str]] = []
        vectors: list[tuple[str, ...]] = []
        for node in self.block_nodes:
            if node.operator == "Linear":
                groups += [
                    (names, prefix) for names, _ in linear_groups(node, self.encodings, prefix)
                ]
                vectors += [node.names("biases")] if node.names("biases") else []
            elif node.operator == "RMSNorm":
                vectors.append((f"{node.text('weight')}.weight",))
        self.shared[place] = self._write(place, groups, vectors, prefix)
        lower = self.lowering.block
        nodes = self.block_nodes
        graph = lower(nodes, place, prefix, f"hidden.{index + 1}", f"hidden.{index + 2}")
        key = tuple(self.encodings[prefix + weight] for names, _ in groups for weight in names)
        if key not in self.structures:
            anywhere = lower(nodes, "block", prefix, "hidden.in", "hidden.out")
            self.structures[key] = anywhere.structure()
        weights = [prefix + name for names, _ in groups for name in names]
        weights += [prefix + name for names in vectors for name in names]
        return self._unit("block", graph, weights, place, self.structures[key])

    def _head(self) -> Unit:
        self._progress("head")
        epsilon = float(self.config.rms_norm_eps)
        groups = [] if self.tied else [(("lm_head.weight",), "")]
        self.shared["head"] = self._write("head", groups, [("norm.weight",)])
        last = f"hidden.{self.num_blocks + 1}"
        graph = self.lowering.head(epsilon, "head", last, self.tied)
        structure = self.lowering.head(epsilon, "head", "hidden.in", self.tied).structure()
        weights = ["norm.weight"] + ([] if self.tied else ["lm_head.weight"])
        return self._unit("head", graph, weights, "head", structure)

    def _progress(self, step: str) -> None:
        self.report(Progress(step, self.done, self.total))

    def _write(
        self,
        place: str,
        groups: Sequence[tuple[tuple[str, ...], str]],
        vectors: Sequence[tuple[str, ...]],
        prefix: str = "",
    ) -> WrittenBlob:
        """Stream a unit's matrices, then its vectors, into its blob."""
        layout: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {}
        for names, before in groups:
            rows = sum(self.checkpoint.shape(before + name)[0] for name in names)
            columns = self.checkpoint.shape(before + names[0])[1]
            parts = self.encodings[before + names[0]].parts(rows, columns)
            layout |= {f"{joined_name(names)}.{part}": kind for part, kind in parts.items()}
        for names in vectors:
            size = sum(self.checkpoint.shape(prefix + name)[0] for name in names)
            layout[joined_name(names)] = (np.float32, (size,))

        def tensors() -> Iterator[tuple[str, NDArray[np.generic]]]:
            for names, before in groups:
                encoding = self.encodings[before + names[0]]
                pieces = [self._encode(before + name, encoding) for name in names]
                for part in pieces[0]:
                    axis = 1 if part == "offsets" else 0
                    values = [piece[part] for piece in pieces]
                    joined = values[0] if len(values) == 1 else np.concatenate(values, axis)
                    yield f"{joined_name(names)}.{part}", joined
            for names in vectors:
                floats = [self.checkpoint.floats(prefix + name) for name in names]
                for name, value in zip(names, floats, strict=True):
                    self._check_finite(prefix + name, value)
                self.done += sum(value.size for value in floats)
                yield joined_name(names), np.concatenate(floats)

        return write_blob(self.store, layout, tensors())

    def _encode(self, weight: str, encoding: Encoding) -> dict[str, Array]:
        stored = self.checkpoint.stored_type(weight)
        self.done += int(np.prod(self.checkpoint.shape(weight)))
        if STORED.get(stored) == encoding:
            parts = import_gguf(self.checkpoint.gguf_blocks(weight), stored)
            self._check_finite(weight, *(parts[name] for name in parts if name != "codes"))
            return parts
        values = self.checkpoint.floats(weight)
        self._check_finite(weight, values)
        return quantise(values, encoding)

    def _check_finite(self, weight: str, *values: Array) -> None:
        if not all(np.isfinite(array).all() for array in values):
            raise InputError(f"tensor {weight} of {self.checkpoint.path} holds NaN or infinity")

    def _unit(
        self,
        kind: UnitKind,
        graph: GraphBuilder,
        weights: Sequence[str],
        name: str,
        structure: str | None = None,
    ) -> Unit:
        extents: dict[str, Extent] = {}
        for label in graph.blobs:
            written = self.shared[label].extents
            extents |= {f"{label}:{tensor}": extent for tensor, extent in written.items()}
        model = graph.model(extents)
        if self.target == "ort":
            model = SkipNormPass().call(model)
        parameters = sum(int(np.prod(self.checkpoint.shape(weight))) for weight in weights)
        return Unit(
            name=name,
            kind=kind,
            graph=self.store.put(model.SerializeToString(deterministic=True), ".onnx"),
            weights=tuple(self.shared[label].blob for label in graph.blobs),
            structure=structure or graph.structure(),
            num_parameters=parameters,
        )

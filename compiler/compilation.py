"""One target's compile: the order of it all.

trace → choose encodings → each unit's weights → each unit's graph → manifest
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing

import msgspec
import numpy as np

from edgeshard.artifacts.skip_norm import SkipNormPass
from edgeshard.artifacts.store import Store
from edgeshard.compiler.blob import Piece, WrittenBlob, write_blob
from edgeshard.compiler.cache_scales import ShowCache, cache_scales
from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.choice import Wish, choose_encodings
from edgeshard.compiler.description import Describing
from edgeshard.compiler.encoding import STORED
from edgeshard.compiler.graph import Extent, GraphBuilder
from edgeshard.compiler.join_products import join_products
from edgeshard.compiler.lower_ort import INT8_CACHE_RUNTIME, OrtLowering
from edgeshard.compiler.lower_portable import PortableLowering
from edgeshard.compiler.lower_tensorrt import MAX_STEP, TensorrtLowering
from edgeshard.compiler.lowering import (
    EMBEDDING,
    FLOATS,
    HEAD,
    Lowering,
    Shape,
    cache_blob,
    linear_groups,
    precision_activations,
    table_blob,
)
from edgeshard.compiler.names import check_names
from edgeshard.compiler.production import Production, default_jobs
from edgeshard.compiler.progress import Progress
from edgeshard.compiler.semantic import Model, Node, fold_scale
from edgeshard.compiler.source import SourceDigest
from edgeshard.compiler.weights import Product, Recipe, compile_loops
from edgeshard.errors import InputError
from edgeshard.schemas.common import Blob, FloatType, Precision, Target, UnitKind
from edgeshard.schemas.model import KvSpec, ModelManifest, Source, Unit

LOWERINGS: dict[Target, type[Lowering]] = {
    "ort": OrtLowering,
    "portable": PortableLowering,
    "tensorrt": TensorrtLowering,
}


class Compilation:
    """One target's compile; several share a checkpoint and a store."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        store: Store,
        source: SourceDigest,
        describing: Describing,
        precision: Precision | None,
        activations: FloatType | None,
        target: Target,
        context: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Refuse what the target cannot be; what wishes are left may be set after."""
        self.checkpoint = checkpoint
        self.store = store
        self.source = source
        self.describing = describing
        self.target: Target = target
        self.context = context
        self.report = on_progress
        quantised = any(checkpoint.stored_type(weight) in STORED for weight in checkpoint.names())
        self.precision: Precision = precision or ("stored" if quantised else "fp32")
        self.activations = activations or precision_activations(self.precision)
        self._check_target()
        self.jobs = default_jobs()
        self.bits: float | None = None
        self.calibration = Calibration()
        self.show_cache: ShowCache | None = None
        self.tied = HEAD not in checkpoint.names()
        self.notices: list[str] = []
        self.total = self.done = self.num_reused = 0
        self.structures: dict[tuple[object, ...], str] = {}

    def _check_target(self) -> None:
        lowering = LOWERINGS[self.target]
        for what, value, known in (
            ("precision", self.precision, lowering.precisions),
            ("activations", self.activations, lowering.activations),
        ):
            if value not in known:
                raise InputError(
                    f"the {self.target} target has no {what} {value}; it has {', '.join(known)}"
                )
        weights: FloatType = precision_activations(self.precision)
        if weights not in ("float32", self.activations):
            raise InputError(
                f"precision {self.precision} computes in {weights}, not in {self.activations}; "
                "leave --activations out"
            )

    def run(self, name: str | None, targets: tuple[Target, ...]) -> ModelManifest:
        """Everything but the publishing of the manifest."""
        self._check_cache(targets)
        self.report(Progress("tracing the model", 0, 1))
        wish = Wish(self.precision, self.target, self.bits, self.calibration)
        if wish.is_quantised:
            compile_loops(self.calibration)
        self.encodings = choose_encodings(self.checkpoint, wish, self._notice)
        described = self.describing.result(self.checkpoint)
        self.model, factors = fold_scale(described.model)
        self.tables = {
            kind: table.scaled(factors.get(kind, 1.0)) for kind, table in described.tables.items()
        }
        self.num_blocks = len(self.model.blocks)
        num_positions = len(next(iter(self.tables.values())).cos)
        self.shape = _shape(self.model, num_positions, self.context)
        check_names(self.checkpoint, self.model, is_tied=described.is_tied)
        self.model = join_products(self.model, self.encodings)
        self.lowering = LOWERINGS[self.target](self.shape, self.encodings, self.activations)
        text = described.text
        for remark in text.remarks:
            self._notice(remark)
        self.total = sum(
            int(np.prod(self.checkpoint.shape(weight))) for weight in self.checkpoint.names()
        )
        recipes = self._recipes()
        production = Production(self.store, self.checkpoint, self.source, self.jobs, self._count)
        units = []
        with closing(production.run(recipes)) as made:
            self.shared = self._shared_blobs()
            for place, (recipe, blob) in enumerate(made):
                self.shared[recipe.unit] = blob
                units.append(self._unit_at(place, recipe))
        self.num_reused = production.num_reused
        is_static = self.lowering.kv_layout == "copy"
        manifest = ModelManifest(
            name=name or self._default_name(targets),
            architecture=described.architecture,
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
                dtype=self.activations,
                context=self.shape.static_context if is_static else None,
                max_step=min(MAX_STEP, self.shape.static_context) if is_static else None,
            ),
            units=tuple(units),
            tokenizer=self._put(text.tokenizer, ".json"),
            chat_template=self._put(text.chat_template, ".jinja"),
            special_tokens=text.special_tokens,
            eos_token_ids=text.eos_token_ids,
            source=Source(kind=self.checkpoint.kind, digest=self.source.result()),
            min_runtime=self.lowering.min_runtime,
            activations=self.activations,
            generation=text.generation,
        )
        return manifest if self.show_cache is None else self._in_int8(manifest, recipes)

    def _check_cache(self, targets: tuple[Target, ...]) -> None:
        if self.show_cache is not None and (targets, self.activations) != (("ort",), "float32"):
            raise InputError(
                f"keys and values in int8 are for the ort target with float32 activations, not for "
                f"{' and '.join(targets)} with {self.activations}; leave --kv out, or the others"
            )

    def _in_int8(self, made: ModelManifest, recipes: Sequence[Recipe]) -> ModelManifest:
        """The model with keys and values in int8: new graphs of its blocks, over their blobs."""
        assert self.show_cache is not None
        self.lowering.cache = "int8"
        self.structures.clear()
        units = list(made.units)
        for index, shown in enumerate(self.show_cache(made)):
            self.report(Progress(f"block.{index}: keys, values", index, self.num_blocks))
            scales = cache_scales(*shown, self._rotary_dim(index))
            layout = {name: (np.float32, values.shape) for name, values in scales.items()}
            pieces = [Piece(name, 0, values) for name, values in scales.items()]
            place = index + 1
            self.shared[cache_blob(recipes[place].unit)] = write_blob(self.store, layout, pieces)
            units[place] = self._unit_at(place, recipes[place])
        return msgspec.structs.replace(
            made,
            units=tuple(units),
            kv=msgspec.structs.replace(made.kv, dtype="int8"),
            min_runtime=INT8_CACHE_RUNTIME,
        )

    def _rotary_dim(self, index: int) -> int:
        nodes = self.model.blocks[index]
        return next(node.integer("rotary_dim") for node in nodes if node.operator == "Attention")

    def _default_name(self, targets: tuple[Target, ...]) -> str:
        stem = self.checkpoint.path.name.removesuffix(".gguf")
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-")
        parts = ["", self.precision if self.bits is None else f"{self.precision}-{self.bits:g}"]
        if self.activations != precision_activations(self.precision):
            parts.append(self.activations)
        if self.show_cache is not None:
            parts.append("kv-int8")
        suffix = "-".join((*parts, *(targets if targets != ("ort",) else ())))
        return f"{(plain or 'model')[: 64 - len(suffix)]}{suffix}"

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)

    def _put(self, text: str | None, suffix: str) -> Blob | None:
        return None if text is None else self.store.put(text.encode(), suffix)

    def _count(self, unit: str, num_values: int) -> None:
        self.done += num_values
        self.report(Progress(unit, self.done, self.total))

    # Units

    def _shared_blobs(self) -> dict[str, WrittenBlob]:
        """Blobs that several units point into: rotary tables, and zero points where needed."""
        dtype = FLOATS[self.activations][1]
        shared = {}
        for kind, tables in self.tables.items():
            rope = {"cos": tables.cos.astype(dtype), "sin": tables.sin.astype(dtype)}
            layout = {name: (dtype, table.shape) for name, table in rope.items()}
            whole = [Piece(name, 0, table) for name, table in rope.items()]
            shared[table_blob(kind)] = write_blob(self.store, layout, whole)
        if self.target == "portable":
            for bits in sorted({e.read_bits for e in self.encodings.values() if e.kind != "float"}):
                zeros = np.full(self._most_zeros(bits), {4: 0x88, 8: 0x80}[bits], np.uint8)
                shared[f"zeros{bits}"] = write_blob(
                    self.store, {"zeros": (np.uint8, zeros.shape)}, [Piece("zeros", 0, zeros)]
                )
        return shared

    def _most_zeros(self, bits: int) -> int:
        """Bytes of zero points of the largest product; one may take several matrices together."""
        ends = {weight for weight in self.encodings if not weight.startswith("layers.")}
        products: list[list[str]] = [[weight] for weight in sorted(ends)]
        for index, nodes in enumerate(self.model.blocks):
            prefix = f"layers.{index}."
            for node in nodes:
                if node.operator == "Linear":
                    groups = linear_groups(node, self.encodings, prefix)
                    products += [[prefix + name for name in names] for names, _ in groups]
        sizes = [0]
        for weights in products:
            encoding = self.encodings[weights[0]]
            if encoding.kind != "float" and encoding.read_bits == bits:
                values = sum(int(np.prod(self.checkpoint.shape(weight))) for weight in weights)
                sizes.append(-(-values // encoding.block * bits // 8))
        return max(sizes)

    def _recipes(self) -> list[Recipe]:
        """What every unit's blob is made of, in the order of the units."""
        embedding = Product((EMBEDDING,), self.encodings[EMBEDDING])
        blocks = enumerate(self.model.blocks)
        how = self.activations, self.calibration
        return [
            Recipe("embedding", "", (embedding,), (), *how),
            *(self._recipe(f"block.{index}", f"layers.{index}.", nodes) for index, nodes in blocks),
            self._recipe("head", "", self.model.head),
        ]

    def _recipe(self, unit: str, prefix: str, nodes: Sequence[Node]) -> Recipe:
        products: list[Product] = []
        vectors: list[tuple[str, ...]] = []
        plus_one: list[str] = []
        for node in nodes:
            if node.operator == "Linear":
                if not (self.tied and node.names("weights") == (HEAD,)):
                    products += [
                        Product(names, self.encodings[prefix + names[0]])
                        for names, _ in linear_groups(node, self.encodings, prefix)
                    ]
                vectors += [node.names("biases")] if node.names("biases") else []
            elif node.operator in ("RMSNorm", "HeadNorm"):
                vectors.append((f"{node.text('weight')}.weight",))
                plus_one += vectors[-1] if node.integer("plus_one") else ()
        how = self.activations, self.calibration, tuple(plus_one)
        return Recipe(unit, prefix, tuple(products), tuple(vectors), *how)

    def _unit_at(self, place: int, recipe: Recipe) -> Unit:
        if place == 0:
            return self._embedding(recipe)
        if place <= self.num_blocks:
            return self._block(place - 1, recipe)
        return self._head(recipe)

    def _embedding(self, recipe: Recipe) -> Unit:
        return self._unit("embedding", self.lowering.embedding(self.model.embedding), recipe)

    def _block(self, index: int, recipe: Recipe) -> Unit:
        lower, nodes = self.lowering.block, self.model.blocks[index]
        first, last = f"hidden.{index + 1}", f"hidden.{index + 2}"
        graph = lower(nodes, recipe.unit, recipe.prefix, first, last)
        key = (id(nodes), *((product.names, product.encoding) for product in recipe.products))
        if key not in self.structures:
            anywhere = lower(nodes, "block", recipe.prefix, "hidden.in", "hidden.out")
            self.structures[key] = anywhere.structure()
        return self._unit("block", graph, recipe, self.structures[key])

    def _head(self, recipe: Recipe) -> Unit:
        lower, nodes = self.lowering.head, self.model.head
        graph = lower(nodes, f"hidden.{self.num_blocks + 1}", self.tied)
        structure = lower(nodes, "hidden.in", self.tied).structure()
        return self._unit("head", graph, recipe, structure)

    def _unit(
        self, kind: UnitKind, graph: GraphBuilder, recipe: Recipe, structure: str | None = None
    ) -> Unit:
        extents: dict[str, Extent] = {}
        for label in graph.blobs:
            written = self.shared[label].extents
            extents |= {f"{label}:{tensor}": extent for tensor, extent in written.items()}
        model = graph.model(extents)
        if self.target == "ort":
            model = SkipNormPass().call(model)
        return Unit(
            name=recipe.unit,
            kind=kind,
            graph=self.store.put(model.SerializeToString(deterministic=True), ".onnx"),
            weights=tuple(self.shared[label].blob for label in graph.blobs),
            structure=structure or graph.structure(),
            num_parameters=sum(math.prod(self.checkpoint.shape(t)) for t in recipe.tensors),
        )


def _shape(model: Model, max_context: int, context: int) -> Shape:
    """The sizes of a traced model.

    Raises:
        InputError: its blocks keep keys and values of several shapes.
    """
    caches = {
        (node.integer("num_kv_heads"), node.integer("head_dim"))
        for nodes in model.kinds
        for node in nodes
        if node.operator == "Attention"
    }
    if len(caches) != 1:
        raise InputError("blocks with several sizes of keys and values are not supported")
    num_kv_heads, head_dim = caches.pop()
    table = next(node for node in model.embedding if node.operator == "Embedding")
    return Shape(
        hidden_size=table.integer("columns"),
        vocab_size=table.integer("rows"),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context=max_context,
        static_context=min(context, max_context),
    )

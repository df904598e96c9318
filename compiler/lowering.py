"""What every target shares: walking the semantic nodes of a unit and emitting graph nodes.

A target subclasses `Lowering` and says how a norm, a matrix product, an embedding and an attention
run. Unit graphs join by name: block i reads `hidden.i+1` and writes `hidden.i+2` of the chain

    token_ids ─ embedding ─ hidden.1 ─ block.0 ─ hidden.2 ─ … ─ head ─ logits

so that fusing units renames nothing. Axes: B batch, S new positions, P selected positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from onnx import TensorProto

from edgeshard.compiler.encoding import FLOAT, Encoding
from edgeshard.compiler.graph import GraphBuilder
from edgeshard.compiler.semantic import SHARED, Node
from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType, Precision, Target

FLOATS: dict[FloatType, tuple[int, type[np.generic]]] = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
ELEMENTWISE = {
    *("Add", "Mul", "Sub", "Div", "Pow", "Neg", "Sigmoid", "Tanh", "Relu", "Erf", "Exp", "Sqrt")
}
SIX_BIT_OPSET = 18  # the first one with BitwiseOr
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that lowering needs.

    Attributes:
        max_context: positions that the rotary tables cover.
        static_context: positions of the cache where a target fixes them in the graph.
    """

    hidden_size: int
    vocab_size: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    static_context: int = 2048


class Lowering(ABC):
    """Semantic nodes to the operators of one target.

    Within a unit floats are of the model's type of activations; a unit takes and gives float32, so
    that shards of any two targets and types meet.
    """

    target: Target
    precisions: tuple[Precision, ...]
    activations: tuple[FloatType, ...]
    kv_layout: Literal["static", "append", "copy"]
    # Lowest opset that has every operator of the target, for float and for quantised weights, and
    # the first ONNX Runtime release that runs it.
    float_opset: int
    block_opset: int
    min_runtimes: Mapping[int, str]
    batch: int | str = "B"
    # Keys and values, where they are not of the type of the activations.
    cache: Literal["int8"] | None = None

    def __init__(
        self, shape: Shape, encodings: Mapping[str, Encoding], activations: FloatType = "float32"
    ) -> None:
        self.shape = shape
        self.encodings = encodings
        self.float_type, self.float_dtype = FLOATS[activations]
        floats = all(encoding == FLOAT for encoding in encodings.values())
        self.opset = self.float_opset if floats else self.block_opset
        if any(encoding.bits == 6 for encoding in encodings.values()):
            self.opset = max(self.opset, SIX_BIT_OPSET)
        self.min_runtime = self.min_runtimes[self.opset]

    # What a target says

    @abstractmethod
    def norm(self, graph: GraphBuilder, x: str, weight: str, epsilon: float) -> str:
        """Root-mean-square norm over the last axis, scaled by `weight`."""

    @abstractmethod
    def product(
        self, graph: GraphBuilder, x: str, weight: str, encoding: Encoding, rows: int, columns: int
    ) -> str:
        """`x [.., columns]` times the transpose of `weight [rows, columns]`."""

    @abstractmethod
    def gather(self, graph: GraphBuilder, tokens: str, weight: str, encoding: Encoding) -> str:
        """Rows of the embedding `[vocab, hidden]` for token ids `[B, S]`."""

    @abstractmethod
    def attention(self, graph: GraphBuilder, inputs: Sequence[str], node: Node) -> str:
        """Causal attention of queries, keys and values: `[B, S, (H + 2 KV) * D]`, or three inputs.

        `node` says what the scores go through, and how far back a query looks.
        """

    @abstractmethod
    def position_inputs(self, graph: GraphBuilder) -> None:
        """Add the graph inputs that tell a block which positions it computes."""

    # What all targets share

    def embedding(self, nodes: Sequence[Node]) -> GraphBuilder:
        """The graph of the embedding unit; `nodes` from `trace_model`."""
        graph = GraphBuilder("embedding", self.opset)
        graph.input("token_ids", TensorProto.INT64, (self.batch, "S"))
        self._walk(graph, nodes, "token_ids", "", "hidden.1")
        graph.output("hidden.1", TensorProto.FLOAT, (self.batch, "S", self.shape.hidden_size))
        return graph

    def block(
        self, nodes: Sequence[Node], place: str, weights: str, first: str, last: str
    ) -> GraphBuilder:
        """The graph of a decoder block.

        Args:
            nodes: from `trace_model`.
            place: `block.7`.
            weights: prefix of its names in `encodings`, such as `layers.7.`.
            first: name of its input.
            last: name of its output.
        """
        graph = GraphBuilder(place, self.opset)
        size = (self.batch, "S", self.shape.hidden_size)
        hidden = self.narrow(graph, graph.input(first, TensorProto.FLOAT, size))
        self.position_inputs(graph)
        self._walk(graph, nodes, hidden, weights, last)
        graph.output(last, TensorProto.FLOAT, size)
        return graph

    def head(self, nodes: Sequence[Node], first: str, tied: bool) -> GraphBuilder:
        """The graph of the head: its nodes at `logit_positions [P]`, which each stand alone."""
        graph = GraphBuilder("head", self.opset)
        size = (self.batch, "S", self.shape.hidden_size)
        hidden = graph.input(first, TensorProto.FLOAT, size)
        positions = graph.input("logit_positions", TensorProto.INT64, ("P",))
        hidden = self.narrow(graph, graph.op("Gather", [hidden, positions], axis=1))
        if tied:
            graph.blob_of[HEAD] = f"embedding:{EMBEDDING}"
        self._walk(graph, nodes, hidden, "", "logits")
        graph.output("logits", TensorProto.FLOAT, (self.batch, "P", self.shape.vocab_size))
        return graph

    def vector(self, graph: GraphBuilder, name: str, size: int) -> str:
        """A float vector from a blob."""
        return graph.weight(name, self.float_type, (size,))

    def narrow(self, graph: GraphBuilder, x: str) -> str:
        """From float32 to the type within a unit."""
        if self.float_type == TensorProto.FLOAT:
            return x
        return graph.op("Cast", [x], to=self.float_type)

    def block_sums(self, graph: GraphBuilder, x: str, blocks: int, block: int) -> str:
        """Sums of `block` neighbouring inputs; products of the same input share them."""
        key = f"{x}/{block}"
        if key not in graph.shared:
            split = graph.op("Reshape", [x, graph.integers(0, 0, blocks, block)])
            axes = graph.integers(-1)
            graph.shared[key] = graph.op("ReduceSum", [split, axes], keepdims=0)
        return graph.shared[key]

    def widen(self, graph: GraphBuilder, x: str) -> str:
        """From the type within a unit to float32."""
        if self.float_type == TensorProto.FLOAT:
            return x
        return graph.op("Cast", [x], to=TensorProto.FLOAT)

    def _leave(self, graph: GraphBuilder, x: str, output: str) -> None:
        """Give the unit's result, in float32, its name."""
        if self.float_type == TensorProto.FLOAT:
            graph.op("Identity", [x], outputs=[output])
        else:
            graph.op("Cast", [x], outputs=[output], to=TensorProto.FLOAT)

    def scales(
        self, graph: GraphBuilder, weight: str, encoding: Encoding, rows: int, blocks: int
    ) -> str:
        """Float scales `[rows, blocks]`; bytes become floats when a session is loaded, once."""
        if not encoding.has_steps:
            return graph.weight(f"{weight}.scales", self.float_type, (rows, blocks))
        at = weight.split(":")[1]
        counts = graph.weight(f"{weight}.scales", TensorProto.INT8, (rows, blocks))
        counts = graph.op("Cast", [counts], at=at, to=TensorProto.FLOAT)
        steps = graph.weight(f"{weight}.steps", TensorProto.FLOAT, (rows, 1))
        scales = graph.op("Mul", [counts, steps], at=at)
        if self.float_type == TensorProto.FLOAT:
            return scales
        return graph.op("Cast", [scales], at=at, to=self.float_type)

    def six_bit_codes(self, graph: GraphBuilder, weight: str, rows: int, columns: int) -> str:
        """Codes of 6 bits as `[rows, columns]` bytes, whose lowest two bits are 0.

        No kernel reads 6 bits. Constants all of it, so done once, when a session is loaded.
        """
        packed = graph.weight(f"{weight}.codes", TensorProto.UINT8, (rows, columns * 3 // 4))
        return self._unpack_sixes(graph, packed, weight.split(":")[1])

    def six_bit_rows(
        self, graph: GraphBuilder, tokens: str, weight: str, encoding: Encoding
    ) -> str:
        """Rows of an embedding in 6 bits; only those are unpacked that are looked up."""
        rows, columns = self.shape.vocab_size, self.shape.hidden_size
        blocks, at = columns // encoding.block, weight.split(":")[1]
        packed = graph.weight(f"{weight}.codes", TensorProto.UINT8, (rows, columns * 3 // 4))
        codes = self._unpack_sixes(graph, graph.op("Gather", [packed, tokens]), at)
        values = graph.op("Cast", [codes], to=self.float_type)
        middle = graph.constant(np.full(1, 2 ** (encoding.read_bits - 1), self.float_dtype))
        values = graph.op("Sub", [values, middle])
        split = graph.op("Reshape", [values, graph.integers(0, 0, blocks, encoding.block)])
        scales = graph.op("Gather", [self.scales(graph, weight, encoding, rows, blocks), tokens])
        result = graph.op("Mul", [split, graph.op("Unsqueeze", [scales, graph.integers(-1)])])
        return graph.op("Reshape", [result, graph.integers(0, 0, columns)])

    def _unpack_sixes(self, graph: GraphBuilder, packed: str, at: str) -> str:
        """See `encoding.py`'s function of this name."""

        def shifted(x: str, bits: int, direction: str) -> str:
            count = graph.constant(np.array(bits, np.uint8))
            return graph.op("BitShift", [x, count], at=at, direction=direction)

        parts = [f"{graph.place}/{at}/codes_{i}" for i in range(3)]
        tops = shifted(packed, 6, "RIGHT")
        graph.op("Split", [tops], at=at, outputs=parts, axis=-1, num_outputs=3)
        low, middle, high = (shifted(x, 2 * i + 2, "LEFT") for i, x in enumerate(parts))
        last = graph.op("BitwiseOr", [low, middle], at=at)
        last = graph.op("BitwiseOr", [last, high], at=at)
        return graph.op("Concat", [shifted(packed, 2, "LEFT"), last], at=at, axis=-1)

    def _walk(
        self, graph: GraphBuilder, nodes: Sequence[Node], first: str, weights: str, last: str
    ) -> None:
        is_float32 = self.float_type == TensorProto.FLOAT
        names = {"hidden": first, "token_ids": first}
        for node in nodes:
            inputs = [names[name] for name in node.inputs]
            final = is_float32 and node.outputs[0] == "hidden_out"
            if node.operator == "Split":
                outputs = [f"{graph.place}/{name}" for name in node.outputs]
                self._split(graph, node, inputs[0], outputs)
                names |= dict(zip(node.outputs, outputs, strict=True))
                continue
            result = self._lower(graph, node, inputs, weights, last if final else "")
            names[node.outputs[0]] = result
        if names["hidden_out"] != last:
            self._leave(graph, names["hidden_out"], last)

    def _lower(
        self, graph: GraphBuilder, node: Node, inputs: list[str], weights: str, output: str
    ) -> str:
        named = [output] if output else []
        match node.operator:
            case "Embedding":
                return self.gather(
                    graph, inputs[0], f"{graph.place}:{EMBEDDING}", self.encodings[EMBEDDING]
                )
            case "RMSNorm":
                return self._norm(graph, node, inputs[0])
            case "HeadNorm":
                return self._head_norm(graph, node, inputs[0])
            case "Linear":
                return self._linear(graph, node, inputs[0], weights)
            case "Attention":
                return self.attention(graph, inputs, node)
            case "Constant":
                return self._number(graph, node.number("value"))
            case "Gelu":
                return self.gelu(graph, inputs[0], node.attributes.get("approximate") == "tanh")
            case "Reshape":
                shape = graph.integers(*node.integers("shape"))
                return graph.op("Reshape", [inputs[0], shape], outputs=named)
            case operator if operator in ELEMENTWISE:
                return graph.op(operator, inputs, outputs=named)
        raise InputError(f"operator {node.operator} of the model has no lowering for {self.target}")

    def _norm(self, graph: GraphBuilder, node: Node, x: str) -> str:
        name = f"{graph.place}:{node.text('weight')}.weight"
        gamma = self.vector(graph, name, node.integer("size"))
        return self.norm(graph, x, gamma, node.number("epsilon"))

    def _head_norm(self, graph: GraphBuilder, node: Node, x: str) -> str:
        heads, size = node.integer("heads"), node.integer("size")
        split = graph.op("Reshape", [x, graph.integers(0, 0, heads, size)])
        normed = self._norm(graph, node, split)
        return graph.op("Reshape", [normed, graph.integers(0, 0, heads * size)])

    def _split(self, graph: GraphBuilder, node: Node, x: str, outputs: Sequence[str]) -> None:
        if "sizes" in node.attributes:
            sizes = graph.integers(*node.integers("sizes"))
            graph.op("Split", [x, sizes], outputs=outputs, axis=-1)
        elif self.opset < 18:
            graph.op("Split", [x], outputs=outputs, axis=-1)
        else:
            graph.op("Split", [x], outputs=outputs, axis=-1, num_outputs=len(outputs))

    def _number(self, graph: GraphBuilder, value: float) -> str:
        return graph.constant(np.array(value, self.float_dtype))

    def gelu(self, graph: GraphBuilder, x: str, tanh: bool) -> str:
        """Gaussian error linear unit, exact or by `tanh`; standard operators unless overridden."""
        half, one = (self._number(graph, value) for value in (0.5, 1.0))
        if tanh:
            cube = graph.op("Mul", [graph.op("Mul", [x, x]), x])
            small = self._number(graph, 0.044715)
            inner = graph.op("Add", [x, graph.op("Mul", [cube, small])])
            root = self._number(graph, math.sqrt(2 / math.pi))
            share = graph.op("Tanh", [graph.op("Mul", [inner, root])])
        else:
            root = self._number(graph, math.sqrt(0.5))
            share = graph.op("Erf", [graph.op("Mul", [x, root])])
        share = graph.op("Add", [share, one])
        return graph.op("Mul", [graph.op("Mul", [x, half]), share])

    def _linear(self, graph: GraphBuilder, node: Node, x: str, weights: str) -> str:
        columns = node.integer("in_features")
        results = []
        for names, rows in linear_groups(node, self.encodings, weights):
            blob_name = graph.blob_of.get(names[0], f"{graph.place}:{joined_name(names)}")
            tied = names[0] in graph.blob_of
            encoding = self.encodings[blob_name.split(":")[1] if tied else weights + names[0]]
            results.append(self.product(graph, x, blob_name, encoding, sum(rows), columns))
        y = results[0] if len(results) == 1 else graph.op("Concat", results, axis=-1)
        if node.names("biases"):
            total = sum(node.integers("out_features"))
            bias = f"{graph.place}:{joined_name(node.names('biases'))}"
            y = graph.op("Add", [y, self.vector(graph, bias, total)])
        return y


def linear_groups(
    node: Node, encodings: Mapping[str, Encoding], prefix: str
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Split the weights of a `Linear` into runs of one encoding; a run is one product."""
    groups: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    for name, rows in zip(node.names("weights"), node.integers("out_features"), strict=True):
        if groups and encodings[prefix + groups[-1][0][0]] == encodings[prefix + name]:
            groups[-1] = ((*groups[-1][0], name), (*groups[-1][1], rows))
        else:
            groups.append(((name,), (rows,)))
    return groups


def joined_name(names: Sequence[str]) -> str:
    """Name of weights that lie row behind row as one tensor."""
    return "+".join(names)


def table_blob(kind: str) -> str:
    """Label of the blob with the rotary tables of a kind of block."""
    return "rope" if kind == SHARED else f"rope.{kind}"


def cache_blob(place: str) -> str:
    """Label of the blob with the scales of a block's keys and values."""
    return f"{place}.kv"


def table_shape(shape: Shape, node: Node) -> tuple[int, int]:
    """Shape of an attention's rotary tables: positions and half of the rotated channels."""
    return shape.max_context, node.integer("rotary_dim") // 2


def precision_bits(precision: Precision) -> int:
    """Bits that a precision asks for; 32 for floats."""
    return {"int8": 8, "int4": 4}.get(precision, 32)


def precision_activations(precision: Precision) -> FloatType:
    """Type of activations, keys and values unless another one is asked for."""
    types: dict[Precision, FloatType] = {"fp16": "float16", "bf16": "bfloat16"}
    return types.get(precision, "float32")

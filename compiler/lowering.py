"""What every target shares: walking the semantic nodes of a unit and emitting graph nodes.

A target subclasses `Lowering` and says how a norm, a matrix product, an embedding and an attention
run. Unit graphs join by name: block i reads `hidden.i+1` and writes `hidden.i+2` of the chain

    token_ids ─ embedding ─ hidden.1 ─ block.0 ─ hidden.2 ─ … ─ head ─ logits

so that fusing units renames nothing. Axes: B batch, S new positions, P selected positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from onnx import TensorProto

from edgeshard.compiler.encoding import FLOAT, Encoding
from edgeshard.compiler.graph import GraphBuilder
from edgeshard.compiler.semantic import Node
from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType, Precision, Target

FLOATS: dict[FloatType, tuple[int, type[np.generic]]] = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
ELEMENTWISE = {"Add", "Mul", "Sigmoid", "Sub", "Div", "Tanh", "Neg"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that lowering needs.

    Attributes:
        max_context: positions that the rotary tables cover.
        static_context: positions of the cache where a target fixes them in the graph.
    """

    hidden_size: int
    vocab_size: int
    num_heads: int
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

    def __init__(
        self, shape: Shape, encodings: Mapping[str, Encoding], activations: FloatType = "float32"
    ) -> None:
        self.shape = shape
        self.encodings = encodings
        self.float_type, self.float_dtype = FLOATS[activations]
        floats = all(encoding == FLOAT for encoding in encodings.values())
        self.opset = self.float_opset if floats else self.block_opset
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
    def attention(self, graph: GraphBuilder, qkv: str, node: Node) -> str:
        """Causal attention of packed queries, keys and values `[B, S, (H + 2 KV) * D]`."""

    @abstractmethod
    def position_inputs(self, graph: GraphBuilder) -> None:
        """Add the graph inputs that tell a block which positions it computes."""

    # What all targets share

    def embedding(self, place: str = "embedding", output: str = "hidden.1") -> GraphBuilder:
        """The graph of the embedding unit."""
        graph = GraphBuilder(place, self.opset)
        tokens = graph.input("token_ids", TensorProto.INT64, (self.batch, "S"))
        weight = "embed_tokens.weight"
        hidden = self.gather(graph, tokens, f"embedding:{weight}", self.encodings[weight])
        self._leave(graph, hidden, output)
        graph.output(output, TensorProto.FLOAT, (self.batch, "S", self.shape.hidden_size))
        return graph

    def block(
        self, nodes: Sequence[Node], place: str, weights: str, first: str, last: str
    ) -> GraphBuilder:
        """The graph of a decoder block.

        Args:
            nodes: from `trace_block`, packed.
            place: `block.7`.
            weights: prefix of its names in `encodings`, such as `layers.7.`.
            first: name of its input.
            last: name of its output.
        """
        graph = GraphBuilder(place, self.opset)
        size = self.shape.hidden_size
        hidden = graph.input(first, TensorProto.FLOAT, (self.batch, "S", size))
        names = {"hidden": self.narrow(graph, hidden)}
        self.position_inputs(graph)
        is_float32 = self.float_type == TensorProto.FLOAT
        for node in nodes:
            inputs = [names[name] for name in node.inputs]
            final = node.outputs[0] == "hidden_out"
            output = last if final and is_float32 else ""
            names[node.outputs[0]] = self._lower(graph, node, inputs, weights, output)
        if not is_float32:
            self._leave(graph, names["hidden_out"], last)
        graph.output(last, TensorProto.FLOAT, (self.batch, "S", size))
        return graph

    def head(self, epsilon: float, place: str, first: str, tied: bool) -> GraphBuilder:
        """The graph of the head: final norm and vocabulary product at `logit_positions [P]`."""
        graph = GraphBuilder(place, self.opset)
        shape = self.shape
        size = (self.batch, "S", shape.hidden_size)
        hidden = graph.input(first, TensorProto.FLOAT, size)
        positions = graph.input("logit_positions", TensorProto.INT64, ("P",))
        hidden = self.narrow(graph, graph.op("Gather", [hidden, positions], axis=1))
        gamma = self.vector(graph, f"{place}:norm.weight", shape.hidden_size)
        hidden = self.norm(graph, hidden, gamma, epsilon)
        name = "embed_tokens.weight" if tied else "lm_head.weight"
        blob = "embedding" if tied else place
        logits = self.product(
            graph,
            hidden,
            f"{blob}:{name}",
            self.encodings[name],
            shape.vocab_size,
            shape.hidden_size,
        )
        self._leave(graph, logits, "logits")
        graph.output("logits", TensorProto.FLOAT, (self.batch, "P", shape.vocab_size))
        return graph

    def vector(self, graph: GraphBuilder, name: str, size: int) -> str:
        """A float vector from a blob."""
        return graph.weight(name, self.float_type, (size,))

    def narrow(self, graph: GraphBuilder, x: str) -> str:
        """From float32 to the type within a unit."""
        if self.float_type == TensorProto.FLOAT:
            return x
        return graph.op("Cast", [x], to=self.float_type)

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

    def _lower(
        self, graph: GraphBuilder, node: Node, inputs: list[str], weights: str, output: str
    ) -> str:
        named = [output] if output else []
        match node.operator:
            case "RMSNorm":
                gamma = f"{graph.place}:{node.text('weight')}.weight"
                gamma = self.vector(graph, gamma, self.shape.hidden_size)
                return self.norm(graph, inputs[0], gamma, node.number("epsilon"))
            case "Linear":
                return self._linear(graph, node, inputs[0], weights)
            case "Attention":
                return self.attention(graph, inputs[0], node)
            case "Reshape":
                shape = graph.integers(*node.integers("shape"))
                return graph.op("Reshape", [inputs[0], shape], outputs=named)
            case operator if operator in ELEMENTWISE:
                return graph.op(operator, inputs, outputs=named)
        raise InputError(f"operator {node.operator} of the block has no lowering for {self.target}")

    def _linear(self, graph: GraphBuilder, node: Node, x: str, weights: str) -> str:
        columns = node.integer("in_features")
        results = []
        for names, rows in linear_groups(node, self.encodings, weights):
            blob_name = f"{graph.place}:{joined_name(names)}"
            encoding = self.encodings[weights + names[0]]
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


def tables(shape: Shape) -> tuple[int, int]:
    """Shape of the rotary tables: positions and half the channels of a head."""
    return shape.max_context, shape.head_dim // 2


def precision_bits(precision: Precision) -> int:
    """Bits that a precision asks for; 32 for floats."""
    return {"int8": 8, "int4": 4}.get(precision, 32)


def precision_activations(precision: Precision) -> FloatType:
    """Type of activations, keys and values unless another one is asked for."""
    types: dict[Precision, FloatType] = {"fp16": "float16", "bf16": "bfloat16"}
    return types.get(precision, "float32")

"""The `portable` target: standard ONNX operators only, for any provider and for old builds.

Opset 17 for floats. Block-quantised weights need `DequantizeLinear` with blocks: opset 21. Keys and
values are appended: the cache that comes out is the one that went in with the new positions behind.
Axes: B batch, S new positions, T all positions, H query heads, G queries per KV head, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from onnx import TensorProto

from edgeshard.compiler.encoding import Encoding, num_zero_bytes
from edgeshard.compiler.graph import GraphBuilder
from edgeshard.compiler.lowering import Lowering, table_blob, table_shape
from edgeshard.compiler.semantic import Node
from edgeshard.schemas.common import Precision, Target

LOWEST = {
    TensorProto.FLOAT: np.finfo(np.float32).min,
    TensorProto.FLOAT16: np.finfo(np.float16).min,
}


class PortableLowering(Lowering):
    """Lowers to operators of the standard domain."""

    target: Target = "portable"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4", "mixed", "stored")
    activations = ("float32", "float16")
    kv_layout: Literal["static", "append", "copy"] = "append"
    float_opset = 17
    block_opset = 21
    min_runtimes: Mapping[int, str] = {17: "1.15", 21: "1.20"}  # as run

    def norm(self, graph: GraphBuilder, x: str, weight: str, epsilon: float) -> str:
        """See `Lowering.norm`; in float32, since squares leave the range of float16."""
        wide = self.widen(graph, x)
        square = graph.op("Mul", [wide, wide])
        if self.opset < 18:
            mean = graph.op("ReduceMean", [square], axes=[-1], keepdims=1)
        else:
            mean = graph.op("ReduceMean", [square, graph.integers(-1)], keepdims=1)
        small = graph.constant(np.float32(epsilon).reshape(1))
        root = graph.op("Sqrt", [graph.op("Add", [mean, small])])
        scaled = self.narrow(graph, graph.op("Div", [wide, root]))
        return graph.op("Mul", [scaled, weight])

    def product(
        self, graph: GraphBuilder, x: str, weight: str, encoding: Encoding, rows: int, columns: int
    ) -> str:
        """See `Lowering.product`."""
        at = weight.split(":")[1]
        if encoding.kind == "float":
            matrix = graph.weight(f"{weight}.weight", self.float_type, (rows, columns))
            return self._times(graph, x, matrix, at)
        blocks = columns // encoding.block
        scales = self.scales(graph, weight, encoding, rows, blocks)
        # An odd number of zero points ends in half a byte, which DequantizeLinear does not know.
        is_odd = encoding.kind == "zero_blocks" and blocks % 2 == 1
        own = encoding.kind == "zero_blocks" and not is_odd
        matrix = self._dequantised(graph, weight, encoding, (rows, columns), scales, own=own)
        y = self._times(graph, x, matrix, at)
        if is_odd:
            middle = graph.constant(np.full(1, 2 ** (encoding.bits - 1), self.float_dtype))
            zeros = self._zero_points(graph, weight, rows, blocks, "")
            offsets = graph.op("Mul", [graph.op("Sub", [middle, zeros], at=at), scales], at=at)
            offsets = graph.op("Transpose", [offsets], at=at, perm=[1, 0])
        elif encoding.kind == "offset_blocks":
            offsets = graph.weight(f"{weight}.offsets", self.float_type, (blocks, rows))
        else:
            return y
        # Apart from the matrix: what is added to it, OpenVINO loses (docs/adr/0013).
        sums = self.block_sums(graph, x, blocks, encoding.block)
        return graph.op("Add", [y, graph.op("MatMul", [sums, offsets], at=at)], at=at)

    def _times(self, graph: GraphBuilder, x: str, matrix: str, at: str) -> str:
        transposed = graph.op("Transpose", [matrix], at=at, perm=[1, 0])
        return graph.op("MatMul", [x, transposed], at=at)

    def _dequantised(
        self,
        graph: GraphBuilder,
        weight: str,
        encoding: Encoding,
        shape: tuple[int, int],
        scales: str,
        *,
        own: bool,
    ) -> str:
        """The matrix as floats: about its own zero points, or about the middle of the codes."""
        kind = TensorProto.UINT4 if encoding.bits == 4 else TensorProto.UINT8
        rows, columns = shape
        if encoding.bits == 6:
            codes = self.six_bit_codes(graph, weight, rows, columns)
        else:
            codes = graph.weight(f"{weight}.codes", kind, shape)
        zeros = f"{weight}.zeros" if own else f"zeros{encoding.read_bits}:zeros"
        zeros = graph.weight(zeros, kind, (rows, columns // encoding.block))
        return graph.op(
            "DequantizeLinear",
            [codes, scales, zeros],
            at=weight.split(":")[1],
            axis=1,
            block_size=encoding.block,
        )

    def gather(self, graph: GraphBuilder, tokens: str, weight: str, encoding: Encoding) -> str:
        """See `Lowering.gather`; picks rows of codes first, so as to dequantise no whole table."""
        rows, columns = self.shape.vocab_size, self.shape.hidden_size
        if encoding.kind == "float":
            matrix = graph.weight(f"{weight}.weight", self.float_type, (rows, columns))
            return graph.op("Gather", [matrix, tokens])
        if encoding.bits == 6:
            return self.six_bit_rows(graph, tokens, weight, encoding)
        blocks, width = columns // encoding.block, columns * encoding.bits // 8
        codes = graph.weight(f"{weight}.codes", TensorProto.UINT8, (rows, width))
        codes = graph.op("Gather", [codes, tokens])
        values = graph.op("Cast", [codes], to=self.float_type)
        if encoding.bits == 4:
            values = self._unpack(graph, values, 0, 0, columns)
        last = graph.integers(-1)
        split = graph.op("Reshape", [values, graph.integers(0, 0, blocks, encoding.block)])
        if encoding.kind == "zero_blocks":
            zeros = self._zero_points(graph, weight, rows, blocks, tokens)
            zeros = graph.op("Unsqueeze", [zeros, last])
        else:
            zeros = graph.constant(np.full(1, 2 ** (encoding.bits - 1), self.float_dtype))
        split = graph.op("Sub", [split, zeros])
        scales = self.scales(graph, weight, encoding, rows, blocks)
        scales = graph.op("Gather", [scales, tokens])
        result = graph.op("Mul", [split, graph.op("Unsqueeze", [scales, last])])
        if encoding.kind == "offset_blocks":
            offsets = graph.weight(f"{weight}.offsets", self.float_type, (blocks, rows))
            picked = graph.op("Gather", [offsets, tokens], axis=1)
            picked = graph.op("Transpose", [picked], perm=[1, 2, 0])
            result = graph.op("Add", [result, graph.op("Unsqueeze", [picked, last])])
        return graph.op("Reshape", [result, graph.integers(0, 0, columns)])

    def _zero_points(
        self, graph: GraphBuilder, weight: str, rows: int, blocks: int, tokens: str
    ) -> str:
        """Zero points as floats: `[rows, blocks]`, or of the rows of `tokens` `[B, S, blocks]`."""
        width = num_zero_bytes(blocks)
        zeros = graph.weight(f"{weight}.zeros", TensorProto.UINT8, (rows, width))
        if tokens:
            zeros = graph.op("Gather", [zeros, tokens])
        first = (0, 0) if tokens else (rows,)
        zeros = graph.op("Cast", [zeros], to=self.float_type)
        zeros = self._unpack(graph, zeros, *first, 2 * width)
        if blocks == 2 * width:
            return zeros
        parts = [f"{zeros}/used", f"{zeros}/unused"]
        graph.op("Split", [zeros, graph.integers(blocks, 1)], outputs=parts, axis=-1)
        return parts[0]

    def _unpack(self, graph: GraphBuilder, values: str, *shape: int) -> str:
        """Split the bytes of the last axis, as floats, into nibbles, low before high."""
        sixteen = graph.constant(np.full(1, 16, self.float_dtype))
        high = graph.op("Floor", [graph.op("Div", [values, sixteen])])
        low = graph.op("Sub", [values, graph.op("Mul", [high, sixteen])])
        last = graph.integers(-1)
        pair = [graph.op("Unsqueeze", [part, last]) for part in (low, high)]
        both = graph.op("Concat", pair, axis=-1)
        return graph.op("Reshape", [both, graph.integers(*shape)])

    def position_inputs(self, graph: GraphBuilder) -> None:
        """See `Lowering.position_inputs`."""
        graph.input("position_ids", TensorProto.INT64, ("B", "S"))

    def attention(self, graph: GraphBuilder, inputs: Sequence[str], node: Node) -> str:
        """See `Lowering.attention`."""
        place, heads, kv = graph.place, node.integer("num_heads"), node.integer("num_kv_heads")
        size = node.integer("head_dim")
        names = list(inputs)
        if len(names) == 1:
            sizes = graph.integers(heads * size, kv * size, kv * size)
            names = [f"{place}/attention/{part}" for part in ("query", "key", "value")]
            graph.op("Split", [inputs[0], sizes], outputs=names, axis=-1)
        query, key, value = (
            self._heads(graph, name, count, size)
            for name, count in zip(names, (heads, kv, kv), strict=True)
        )
        if node.integer("rotary_dim"):
            query = self._rotate(graph, query, "query", node)
            key = self._rotate(graph, key, "key", node)
        key, value = (
            self._append(graph, "key", key, node),
            self._append(graph, "value", value, node),
        )
        # [B, H, S, D] as [B, KV, G*S, D]: the queries of a group share a key head.
        group = heads // kv
        query = graph.op("Reshape", [query, graph.integers(0, kv, group, -1, size)])
        key = graph.op(
            "Unsqueeze", [graph.op("Transpose", [key], perm=[0, 1, 3, 2]), graph.integers(2)]
        )
        scores = graph.op("MatMul", [query, key])  # [B, KV, G, S, T]
        if node.number("scale") != 1.0:
            scale = graph.constant(np.full(1, node.number("scale"), self.float_dtype))
            scores = graph.op("Mul", [scores, scale])
        if node.number("softcap"):
            cap = graph.constant(np.full(1, node.number("softcap"), self.float_dtype))
            scores = graph.op("Mul", [graph.op("Tanh", [graph.op("Div", [scores, cap])]), cap])
        scores = self._mask(graph, scores, value, node.integer("window"))
        weights = graph.op("Softmax", [scores], axis=-1)
        value = graph.op("Unsqueeze", [value, graph.integers(2)])
        mixed = graph.op("MatMul", [weights, value])  # [B, KV, G, S, D]
        mixed = graph.op("Reshape", [mixed, graph.integers(0, heads, -1, size)])
        mixed = graph.op("Transpose", [mixed], perm=[0, 2, 1, 3])
        return graph.op("Reshape", [mixed, graph.integers(0, 0, heads * size)])

    def _heads(self, graph: GraphBuilder, x: str, count: int, size: int) -> str:
        split = graph.op("Reshape", [x, graph.integers(0, 0, count, size)])
        return graph.op("Transpose", [split], perm=[0, 2, 1, 3])

    def _rotate(self, graph: GraphBuilder, x: str, part: str, node: Node) -> str:
        """Rotate pairs (channel c, channel c + R/2) of the first R by the angle of the position."""
        blob, half = table_blob(node.text("table")), node.integer("rotary_dim") // 2
        angles = []
        for name in ("cos", "sin"):
            key = f"{blob}:{name}"
            if key not in graph.shared:
                table = graph.weight(key, self.float_type, table_shape(self.shape, node))
                rows = graph.op("Gather", [table, "position_ids"])
                graph.shared[key] = graph.op("Unsqueeze", [rows, graph.integers(1)])
            angles.append(graph.shared[key])
        cos, sin = angles
        rest = node.integer("head_dim") - 2 * half
        pieces = [f"{graph.place}/attention/{part}/half_{i}" for i in (0, 1)]
        sizes = [half, half]
        if rest:
            pieces.append(f"{graph.place}/attention/{part}/rest")
            sizes.append(rest)
        graph.op("Split", [x, graph.integers(*sizes)], outputs=pieces, axis=-1)
        low = graph.op(
            "Sub", [graph.op("Mul", [pieces[0], cos]), graph.op("Mul", [pieces[1], sin])]
        )
        high = graph.op(
            "Add", [graph.op("Mul", [pieces[1], cos]), graph.op("Mul", [pieces[0], sin])]
        )
        return graph.op("Concat", [low, high, *pieces[2:]], axis=-1)

    def _append(self, graph: GraphBuilder, part: str, new: str, node: Node) -> str:
        """The cache with the new positions behind it."""
        kv, size = node.integer("num_kv_heads"), node.integer("head_dim")
        past = graph.input(f"{graph.place}.past_{part}", self.float_type, ("B", kv, "past", size))
        present = graph.output(
            f"{graph.place}.present_{part}", self.float_type, ("B", kv, "T", size)
        )
        return graph.op("Concat", [past, new], axis=2, outputs=[present])

    def _mask(self, graph: GraphBuilder, scores: str, value: str, window: int) -> str:
        """Hide what a query must not see: key t is seen from p where p - window < t <= p."""
        keys = self._key_positions(graph, value)  # [T]
        queries = graph.op(
            "Unsqueeze", ["position_ids", graph.integers(1, 2, 4)]
        )  # [B, 1, 1, S, 1]
        hidden = graph.op("Greater", [keys, queries])
        if window:
            oldest = graph.op("Sub", [queries, graph.integers(window)])
            hidden = graph.op("Or", [hidden, graph.op("LessOrEqual", [keys, oldest])])
        lowest = graph.constant(np.array(LOWEST[self.float_type], self.float_dtype))
        return graph.op("Where", [hidden, lowest, scores])

    def _key_positions(self, graph: GraphBuilder, value: str) -> str:
        """Positions of all keys, counted from 0."""
        place = graph.constant(np.array(2, np.int64))
        total = graph.op("Gather", [graph.op("Shape", [value]), place])
        zero, one = (graph.constant(np.array(i, np.int64)) for i in (0, 1))
        return graph.op("Range", [zero, total, one])

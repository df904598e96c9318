"""The `ort` target: ONNX Runtime's own fused operators, written for its CPU and CUDA providers.

    norm       SimplifiedLayerNormalization (with the residual, SkipSimplifiedLayerNormalization)
    product    FusedMatMul for floats, MatMulNBits for blocks
    embedding  Gather, GatherBlockQuantized
    attention  GroupQueryAttention: packed input, rotary inside, keys and values written in place

The operators' definitions: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import TensorProto

from edgeshard.compiler.encoding import Encoding, num_zero_bytes
from edgeshard.compiler.graph import MICROSOFT, GraphBuilder
from edgeshard.compiler.lowering import Lowering, cache_blob, table_blob, table_shape
from edgeshard.compiler.semantic import Node
from edgeshard.errors import InputError

# int8 activations against 4- and 8-bit weights: the fast kernel.
ACCURACY_LEVEL = 4
PARTS = ("key", "value")
INT8_CACHE_RUNTIME = "1.27"  # the first release whose CPU kernel has it


class OrtLowering(Lowering):
    """Lowers to com.microsoft operators."""

    target = "ort"
    precisions = ("fp32", "fp16", "bf16", "int8", "int4", "mixed", "stored")
    activations = ("float32", "float16", "bfloat16")
    kv_layout = "static"
    float_opset = 17
    block_opset = 17
    min_runtimes: Mapping[int, str] = {17: "1.23", 18: "1.23"}

    def norm(self, graph: GraphBuilder, x: str, weight: str, epsilon: float) -> str:
        """See `Lowering.norm`."""
        return graph.op(
            "SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=epsilon, stash_type=1
        )

    def product(
        self, graph: GraphBuilder, x: str, weight: str, encoding: Encoding, rows: int, columns: int
    ) -> str:
        """See `Lowering.product`."""
        at = weight.split(":")[1]
        if encoding.kind == "float":
            matrix = graph.weight(f"{weight}.weight", self.float_type, (rows, columns))
            return graph.op("FusedMatMul", [x, matrix], domain=MICROSOFT, at=at, transB=1)
        blocks = columns // encoding.block
        if encoding.bits == 6:
            codes = self.six_bit_codes(graph, weight, rows, columns)
            shape = graph.integers(rows, blocks, encoding.block)
            codes = graph.op("Reshape", [codes, shape], at=at)
        else:
            stride = encoding.block * encoding.bits // 8
            codes = graph.weight(f"{weight}.codes", TensorProto.UINT8, (rows, blocks, stride))
        scales = self.scales(graph, weight, encoding, rows, blocks)
        y = graph.op(
            "MatMulNBits",
            [x, codes, scales, *self._zeros(graph, weight, encoding, rows, blocks)],
            domain=MICROSOFT,
            at=at,
            K=columns,
            N=rows,
            bits=encoding.read_bits,
            block_size=encoding.block,
            accuracy_level=ACCURACY_LEVEL,
        )
        if encoding.kind != "offset_blocks":
            return y
        offsets = graph.weight(f"{weight}.offsets", self.float_type, (blocks, rows))
        sums = self.block_sums(graph, x, blocks, encoding.block)
        return graph.op("Add", [y, graph.op("MatMul", [sums, offsets], at=at)], at=at)

    def _zeros(
        self, graph: GraphBuilder, weight: str, encoding: Encoding, rows: int, blocks: int
    ) -> list[str]:
        """Zero points as an input of their own, where they are not the middle of the codes."""
        if encoding.kind != "zero_blocks":
            return []
        width = num_zero_bytes(blocks)
        return [graph.weight(f"{weight}.zeros", TensorProto.UINT8, (rows, width))]

    def gather(self, graph: GraphBuilder, tokens: str, weight: str, encoding: Encoding) -> str:
        """See `Lowering.gather`."""
        rows, columns = self.shape.vocab_size, self.shape.hidden_size
        if encoding.kind == "float":
            matrix = graph.weight(f"{weight}.weight", self.float_type, (rows, columns))
            return graph.op("Gather", [matrix, tokens])
        if encoding.bits == 6:
            return self.six_bit_rows(graph, tokens, weight, encoding)
        blocks = columns // encoding.block
        width = columns * encoding.bits // 8
        codes = graph.weight(f"{weight}.codes", TensorProto.UINT8, (rows, width))
        scales = self.scales(graph, weight, encoding, rows, blocks)
        y = graph.op(
            "GatherBlockQuantized",
            [codes, tokens, scales, *self._zeros(graph, weight, encoding, rows, blocks)],
            domain=MICROSOFT,
            bits=encoding.bits,
            block_size=encoding.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if encoding.kind != "offset_blocks":
            return y
        offsets = graph.weight(f"{weight}.offsets", self.float_type, (blocks, rows))
        picked = graph.op("Gather", [offsets, tokens], axis=1)  # [blocks, B, S]
        picked = graph.op("Transpose", [picked], perm=[1, 2, 0])
        picked = graph.op("Unsqueeze", [picked, graph.integers(-1)])
        split = graph.op("Reshape", [y, graph.integers(0, 0, blocks, encoding.block)])
        return graph.op(
            "Reshape", [graph.op("Add", [split, picked]), graph.integers(0, 0, columns)]
        )

    def position_inputs(self, graph: GraphBuilder) -> None:
        """See `Lowering.position_inputs`."""
        graph.input("seqlens_k", TensorProto.INT32, ("B",))
        graph.input("total_sequence_length", TensorProto.INT32, (1,))

    def attention(self, graph: GraphBuilder, inputs: Sequence[str], node: Node) -> str:
        """See `Lowering.attention`."""
        head_dim, num_kv_heads = node.integer("head_dim"), node.integer("num_kv_heads")
        rotary_dim = node.integer("rotary_dim")
        for what, size in (("head size", head_dim), ("rotary size", rotary_dim)):
            if size % 16:
                raise InputError(
                    f"{what} {size} is not a multiple of 16, which ONNX Runtime's fused rotary "
                    "attention needs; compile with --target portable"
                )
        cache = ("B", num_kv_heads, "C", head_dim)
        kind = TensorProto.INT8 if self.cache == "int8" else self.float_type
        place = graph.place
        past = [graph.input(f"{place}.past_{part}", kind, cache) for part in PARTS]
        present = [graph.output(f"{place}.present_{part}", kind, cache) for part in PARTS]
        tables: list[str] = []
        if rotary_dim:
            blob, shape = table_blob(node.text("table")), table_shape(self.shape, node)
            tables = [
                graph.weight(f"{blob}:{name}", self.float_type, shape) for name in ("cos", "sin")
            ]
        lengths = ["seqlens_k", "total_sequence_length"]
        packed_or_three = [*inputs, "", ""][:3]
        of_int8: dict[str, Any] = {}
        if self.cache == "int8":
            tables = [*tables, *[""] * 5][:5]  # then position ids, a bias and a sink: none
            tables += [
                graph.weight(f"{cache_blob(place)}:{part}", TensorProto.FLOAT, shape)
                for part, shape in dict.fromkeys(PARTS, (1, num_kv_heads, 1, head_dim)).items()
            ]
            of_int8 |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
            of_int8 |= {"kv_cache_bit_width": 8}
        return graph.op(
            "GroupQueryAttention",
            [*packed_or_three, *past, *lengths, *tables],
            domain=MICROSOFT,
            outputs=[f"{place}/attention/output_0", *present],
            num_heads=node.integer("num_heads"),
            kv_num_heads=num_kv_heads,
            scale=node.number("scale"),
            do_rotary=int(bool(rotary_dim)),
            rotary_interleaved=0,
            local_window_size=node.integer("window") or -1,  # both are the operator's defaults
            softcap=node.number("softcap"),
            **of_int8,
        )

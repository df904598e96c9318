"""The `tensorrt` target: `portable` with shapes that an engine can be built for once.

    batch       1
    cache       C positions, fixed in the graph; new ones are written into a copy of it
    steps       1 to `MAX_STEP` new positions: the one free axis, with an explicit shape profile

Opset 17 and the operators that TensorRT 8.5 and later list as supported. Weights are floats, or
signed bytes with one scale for each row: TensorRT takes no unsigned codes and no zero points, and
before version 10 no blocks. The embedding stays in floats, since no version gathers signed bytes
and scales them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from onnx import TensorProto

from edgeshard.compiler.encoding import Encoding
from edgeshard.compiler.graph import GraphBuilder
from edgeshard.compiler.lower_portable import PortableLowering
from edgeshard.compiler.semantic import Node
from edgeshard.schemas.common import Precision, Target

MAX_STEP = 512


class TensorrtLowering(PortableLowering):
    """Lowers to standard operators over static shapes."""

    target: Target = "tensorrt"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    kv_layout: Literal["static", "append", "copy"] = "copy"
    float_opset = 17
    block_opset = 17
    # The first release with a folder for the timing cache; the graphs alone would run on 1.12.
    min_runtimes: Mapping[int, str] = {17: "1.17"}
    batch = 1

    def product(
        self, graph: GraphBuilder, x: str, weight: str, encoding: Encoding, rows: int, columns: int
    ) -> str:
        """See `Lowering.product`.

        The input is transposed, not the weight: ONNX Runtime up to 1.24 moves a
        `DequantizeLinear` behind a `Transpose` with a pair of operators whose types disagree.
        """
        if encoding.kind == "float":
            return super().product(graph, x, weight, encoding, rows, columns)
        at = weight.split(":")[1]
        codes = graph.weight(f"{weight}.codes", TensorProto.INT8, (rows, columns))
        scales = graph.weight(f"{weight}.scales", TensorProto.FLOAT, (rows,))
        matrix = graph.op("DequantizeLinear", [codes, scales], at=at, axis=0)
        turned = graph.op("Transpose", [x], at=at, perm=[0, 2, 1])
        y = graph.op("MatMul", [self.narrow(graph, matrix), turned], at=at)
        return graph.op("Transpose", [y], at=at, perm=[0, 2, 1])

    def position_inputs(self, graph: GraphBuilder) -> None:
        """See `Lowering.position_inputs`."""
        graph.input("position_ids", TensorProto.INT64, (1, "S"))

    def _append(self, graph: GraphBuilder, part: str, new: str, node: Node) -> str:
        """A copy of the cache with the new positions written into it."""
        shape = (
            *(1, node.integer("num_kv_heads")),
            *(self.shape.static_context, node.integer("head_dim")),
        )
        past = graph.input(f"{graph.place}.past_{part}", self.float_type, shape)
        present = graph.output(f"{graph.place}.present_{part}", self.float_type, shape)
        places = graph.op("Unsqueeze", ["position_ids", graph.integers(1, 3)])  # [1, 1, S, 1]
        places = graph.op("Expand", [places, graph.op("Shape", [new])])
        return graph.op("ScatterElements", [past, places, new], axis=2, outputs=[present])

    def _key_positions(self, graph: GraphBuilder, value: str) -> str:
        """Positions of all keys, whether written or not: the mask hides what is ahead."""
        return graph.constant(np.arange(self.shape.static_context, dtype=np.int64))

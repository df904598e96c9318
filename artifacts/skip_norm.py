"""A pass over graphs of the `ort` target: residual addition and norm become one operator."""

from __future__ import annotations

import onnx
from onnx import helper

NORM = "SimplifiedLayerNormalization"


class SkipNormPass:
    """Join `Add` and the norm that reads it into `SkipSimplifiedLayerNormalization`.

    Requires: both inputs of the `Add` have one shape (a residual, as every semantic graph has it).
    Ensures: the sum keeps its name and its place, so that other readers do not notice.

    It runs within units only: joined across a border, the norm would round differently than it does
    behind a cut.
    """

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model with every such pair joined."""
        graph = model.graph
        norms = {node.input[0]: node for node in graph.node if node.op_type == NORM}
        initializers = {tensor.name for tensor in graph.initializer}
        nodes = []
        joined = set()
        for node in graph.node:
            norm = norms.get(node.output[0]) if node.op_type == "Add" else None
            if norm is None or initializers & set(node.input):
                nodes.append(node)
                continue
            joined.add(norm.name)
            epsilon = next(item.f for item in norm.attribute if item.name == "epsilon")
            nodes.append(
                helper.make_node(
                    f"Skip{NORM}",
                    [*node.input, norm.input[1]],
                    [norm.output[0], "", "", node.output[0]],
                    name=f"{norm.name}/Skip",
                    domain="com.microsoft",
                    epsilon=epsilon,
                )
            )
        result = onnx.ModelProto()
        result.CopyFrom(model)
        del result.graph.node[:]
        result.graph.node.extend(node for node in nodes if node.name not in joined)
        if joined and all(item.domain != "com.microsoft" for item in result.opset_import):
            result.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return result

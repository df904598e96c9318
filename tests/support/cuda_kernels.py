"""ONNX Runtime's published list of CUDA kernels, and what of a graph is not in it.

The list is in `cuda_kernels.json`, with its source. What is computed from constants alone is folded
on the CPU when a session is made, so it needs no kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

KERNELS = json.loads(Path(__file__).with_name("cuda_kernels.json").read_text("utf-8"))
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}


def without_kernel(model: onnx.ModelProto, instead: Mapping[str, str] | None = None) -> set[str]:
    """Operators that CUDA has no kernel for in the types that they get, constants left out.

    Args:
        model: the graph.
        instead: types that count as others, such as `{"float": "float16"}`.
    """
    names = {number: (instead or {}).get(name, name) for number, name in NAMES.items()}
    opsets = {item.domain: item.version for item in model.opset_import}
    types = {tensor.name: names[tensor.data_type] for tensor in model.graph.initializer}
    constants = set(types)
    for value in model.graph.input:
        types[value.name] = names[value.type.tensor_type.elem_type]
    missing = set()
    for node in model.graph.node:
        bound = _bound(node, types, names, opsets[node.domain])
        inputs = {name for name in node.input if name}
        if inputs <= constants:
            constants.update(node.output)
        elif bound is None:
            missing.add(node.op_type)
        for name, kind in _outputs(node, types, names, bound):
            types[name] = kind
    return missing


def _bound(
    node: onnx.NodeProto, types: dict[str, str], names: dict[int, str], opset: int
) -> dict[str, str] | None:
    """The row's variables, bound to the node's types; None where no row takes them."""
    version = opset if node.domain == "" else 1
    for row in KERNELS[node.domain].get(node.op_type, ()):
        if not row["from"] <= version <= (row["to"] or version):
            continue
        to = _cast_to(node, names)
        bound = {} if to is None else {row["outputs"][0]: to}
        wanted = [
            (row["inputs"][min(place, len(row["inputs"]) - 1)], types[name])
            for place, name in enumerate(node.input)
            if name
        ]
        is_one = all(bound.setdefault(variable, kind) == kind for variable, kind in wanted)
        if is_one and all(kind in row["types"][variable] for variable, kind in bound.items()):
            return bound
    return None


def _cast_to(node: onnx.NodeProto, names: dict[int, str]) -> str | None:
    """The type that a `Cast` says; None of other operators."""
    return next((names[one.i] for one in node.attribute if one.name == "to"), None)


def _outputs(
    node: onnx.NodeProto,
    types: dict[str, str],
    names: dict[int, str],
    bound: dict[str, str] | None,
) -> Iterator[tuple[str, str]]:
    """Types of what a node gives: of its variables, or of its first input where there is no row."""
    rows = KERNELS[node.domain].get(node.op_type)
    to = _cast_to(node, names)
    for place, name in enumerate(node.output):
        if not name:
            continue
        if to is not None:
            yield name, to
        elif bound is None or rows is None:
            cache = [one for one in node.input if ".past_" in one]
            yield name, types[cache[place - 1] if cache and place else node.input[0]]
        else:
            yield name, bound[rows[0]["outputs"][min(place, len(rows[0]["outputs"]) - 1)]]

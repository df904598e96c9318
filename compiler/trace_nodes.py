"""Turn a traced graph into semantic nodes, cut at the borders of its decoder blocks.

Shapes become attributes, identities vanish, numbers become `Constant` nodes. What a node cannot say
without a tensor of the trace is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeshard.compiler.semantic import Model, Node, Value, pack_attention
from edgeshard.errors import InputError

DOMAIN = "edgeshard"
# Sizes that no model has: they mark the batch and sequence axes in the traced constants.
BATCH, SEQUENCE = 1009, 1013
Arrays = dict[str, NDArray[Any]]


def split_model(graph: onnx.GraphProto, kinds: Sequence[int], windows: Sequence[int]) -> Model:
    """Cut a traced model into embedding, blocks and head.

    Args:
        graph: of the whole model, one block of each kind between `Enter` and `Leave`.
        kinds: for each block, the index of the traced one of its kind.
        windows: for each attention mask of the model, how many positions it lets a query see.

    Returns:
        The model. In every part `hidden` comes in and `hidden_out` goes out; the embedding reads
        `token_ids`, the head gives the logits.

    Raises:
        InputError: an operator cannot be expressed; it is named.
    """
    nodes = _clean(graph)
    first = next(i for i, node in enumerate(nodes) if node.operator == "Enter")
    last = max(i for i, node in enumerate(nodes) if node.operator == "Leave")
    blocks = {}
    for start, node in enumerate(nodes):
        if node.operator != "Enter":
            continue
        stop = next(i for i in range(start, len(nodes)) if nodes[i].operator == "Leave")
        part = _part(nodes, start + 1, stop, node.outputs[0], nodes[stop].inputs[0])
        blocks[node.integer("block")] = tuple(
            _with_window(item, windows) for item in pack_attention(part)
        )
    return Model(
        embedding=_part(nodes, 0, first, graph.input[0].name, nodes[first].inputs[0]),
        blocks=tuple(blocks[kind] for kind in kinds),
        head=_part(nodes, last + 1, len(nodes), nodes[last].outputs[0], graph.output[0].name),
    )


def _part(nodes: Sequence[Node], start: int, stop: int, first: str, last: str) -> tuple[Node, ...]:
    """The nodes of a range that its output needs, with constants and tables from anywhere."""
    anywhere = [n for n in nodes if n.operator in ("Constant", "Table")]
    inside = [n for n in nodes[start:stop] if n.operator not in ("Constant", "Table")]
    names = {first: "hidden", last: "hidden_out"}
    wanted, found = {last}, []
    for node in reversed([*anywhere, *inside]):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs) if node.operator != "Table" else set()
            inputs = () if node.operator == "Table" else node.inputs
            found.append(
                Node(
                    node.operator,
                    tuple(names.get(name, name) for name in inputs),
                    tuple(names.get(name, name) for name in node.outputs),
                    node.attributes,
                )
            )
    known = {"hidden", *(name for node in found for name in node.outputs)}
    lost = [name for node in found for name in node.inputs if name not in known]
    if lost:
        raise InputError(f"a block that reads {lost[0]} from outside is not supported")
    return tuple(reversed(found))


def _with_window(node: Node, windows: Sequence[int]) -> Node:
    """Give an attention the window of its mask, which is what transformers computes with.

    Raises:
        InputError: the attention was told another window than its mask has.
    """
    if node.operator != "Attention":
        return node
    window, told = windows[node.integer("mask")], node.integer("window")
    if window and told and window != told:
        raise InputError(f"attention with a window of {told} under a mask of {window} positions")
    attributes = {key: value for key, value in node.attributes.items() if key != "mask"}
    return Node(node.operator, node.inputs, node.outputs, attributes | {"window": window})


def _clean(graph: onnx.GraphProto) -> list[Node]:
    names: dict[str, str] = {}
    arrays: Arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    nodes = [_constant(name, value) for name, value in arrays.items() if value.size == 1]
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Constant":
            arrays[node.output[0]] = value = onnx.numpy_helper.to_array(attributes["value"])
            if value.size == 1:
                nodes.append(_constant(node.output[0], value))
        elif node.op_type == "Identity":
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            nodes.append(_semantic_node(node, attributes, names, arrays))
    for output in graph.output:
        output.name = names.get(output.name, output.name)
    return nodes


def _constant(name: str, value: NDArray[Any]) -> Node:
    return Node("Constant", (), (name,), {"value": float(value.reshape(()))})


def _semantic_node(
    node: onnx.NodeProto, attributes: dict[str, Any], names: dict[str, str], arrays: Arrays
) -> Node:
    inputs = tuple(names.get(name, name) for name in node.input if name)
    outputs = tuple(node.output)
    operands = [arrays[name] for name in inputs[1:] if name in arrays]
    match node.op_type:
        case "Reshape":
            shape = tuple(0 if i in (BATCH, SEQUENCE) else int(i) for i in operands[0])
            return Node("Reshape", inputs[:1], outputs, {"shape": shape})
        case "Split":
            return Node("Split", inputs[:1], outputs, _split(outputs, operands, attributes))
        case "Slice":
            return Node("Slice", inputs[:1], outputs, _slice(node, operands))
        case "Linear":
            return Node("Linear", inputs, outputs, _linear(attributes))
    if any(name in arrays and arrays[name].size != 1 for name in inputs):
        raise InputError(f"operator {node.op_type} with a constant tensor is not supported")
    return Node(node.op_type, inputs, outputs, {k: _plain(v) for k, v in attributes.items()})


def _linear(attributes: dict[str, Any]) -> dict[str, Value]:
    weight = attributes["weight"].decode()
    return {
        "weights": (f"{weight}.weight",),
        "biases": (f"{weight}.bias",) if attributes["bias"] else (),
        "in_features": attributes["in_features"],
        "out_features": (attributes["out_features"],),
    }


def _split(
    outputs: Sequence[str], operands: list[NDArray[Any]], attributes: dict[str, Any]
) -> dict[str, Value]:
    if attributes.get("axis", 0) not in (-1, 2):
        raise InputError("a split of anything but the channels is not supported")
    if operands and len(set(operands[0].tolist())) > 1:
        raise InputError("a split into unequal parts is not supported")
    return {"parts": len(outputs)}


def _slice(node: onnx.NodeProto, operands: list[NDArray[Any]]) -> dict[str, Value]:
    values = [[int(i) for i in np.atleast_1d(operand)] for operand in operands]
    if len(values) < 3 or values[2] not in ([-1], [2]) or (len(values) > 3 and values[3] != [1]):
        raise InputError("a slice of anything but the channels is not supported")
    return {"start": values[0][0], "stop": min(values[1][0], 2**31)}


def _plain(value: Any) -> Value:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return tuple(value)
    assert isinstance(value, str | int | float), value
    return value

"""Semantic operators: what a traced block does, before a target says how.

    RMSNorm(x)       weight, epsilon
    Linear(x)        weights (several are joined: they share the input), biases, out_features
    Attention(qkv)   causal, with rotary positions and the KV cache; num_heads, num_kv_heads,
                     head_dim, scale (moved into the rotary tables by `fold_scale`)
    Reshape, Transpose, Add, Mul, Sigmoid, …   as in ONNX

Weights appear by name. `pack_attention` joins the three projections of an attention, so that every
target sees one shape of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgeshard.errors import InputError

Value = str | int | float | tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """One semantic operator; `attributes` as the module docstring lists them."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Value] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A string attribute."""
        return str(self.attributes[name])

    def integer(self, name: str) -> int:
        """An integer attribute."""
        value = self.attributes[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """A float attribute."""
        value = self.attributes[name]
        assert isinstance(value, int | float)
        return float(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A tuple of integers."""
        value = self.attributes[name]
        assert isinstance(value, tuple)
        return tuple(int(item) for item in value)

    def names(self, name: str) -> tuple[str, ...]:
        """A tuple of weight names."""
        value = self.attributes[name]
        assert isinstance(value, tuple)
        return tuple(str(item) for item in value)


def pack_attention(nodes: Sequence[Node]) -> list[Node]:
    """Join the query, key and value projections of each attention into one packed `Linear`.

    3 × (Linear → Reshape → Transpose) → Rotary → Attention → Reshape  becomes  Linear → Attention.

    Raises:
        InputError: something lies between projection and attention that no target can lower yet.
    """
    producers = {name: node for node in nodes for name in node.outputs}
    consumers = {name: node for node in nodes for name in node.inputs}
    dropped: set[int] = set()
    packed: dict[int, list[Node]] = {}
    for attention in nodes:
        if attention.operator != "Attention":
            continue
        chain = _Upstream(producers, dropped)
        q, k = chain.rotary(attention)
        projections = [chain.projection(name) for name in (q, k, attention.inputs[2])]
        if len({node.inputs for node in projections}) != 1:
            raise InputError("attention whose projections read different inputs is not supported")
        merge = consumers[attention.outputs[0]]
        if merge.operator != "Reshape":
            raise InputError(f"attention followed by {merge.operator} is not supported")
        dropped.update((id(attention), id(merge), *map(id, projections)))
        name = f"{projections[0].outputs[0]}_packed"
        linear = Node("Linear", projections[0].inputs, (name,), _joined(projections))
        packed[id(merge)] = [linear, replace(attention, inputs=(name,), outputs=merge.outputs)]
    result: list[Node] = []
    for node in nodes:
        result += packed.get(id(node), []) if id(node) in dropped else [node]
    return result


def fold_scale(nodes: Sequence[Node]) -> tuple[list[Node], float]:
    """Move the scale of attention scores into the rotary tables.

    Queries and keys are both turned by the tables, so tables times the root of the scale scale
    their products. With scale 1 ONNX Runtime's CPU kernel reads the keys of a decode step where
    they lie; with any other it copies them first (docs/adr/0009).

    Returns:
        The nodes with attention of scale 1, and the factor that the rotary tables need. Nodes
        whose attentions differ in scale are given back as they are, with factor 1.
    """
    scales = {node.number("scale") for node in nodes if node.operator == "Attention"}
    if len(scales) != 1 or min(scales) <= 0:
        return list(nodes), 1.0
    folded = [
        replace(node, attributes={**node.attributes, "scale": 1.0})
        if node.operator == "Attention"
        else node
        for node in nodes
    ]
    return folded, math.sqrt(scales.pop())


class _Upstream:
    """Walks from an attention towards its projections, noting what the packed form replaces."""

    def __init__(self, producers: dict[str, Node], dropped: set[int]) -> None:
        self._producers = producers
        self._dropped = dropped

    def rotary(self, attention: Node) -> tuple[str, str]:
        rotary = self._expect(attention.inputs[0], "Rotary")
        if rotary.outputs != attention.inputs[:2]:
            raise InputError("attention whose keys are not rotated with its queries")
        return rotary.inputs[0], rotary.inputs[1]

    def projection(self, name: str) -> Node:
        transpose = self._expect(name, "Transpose")
        if transpose.integers("perm") != (0, 2, 1, 3):
            raise InputError(f"attention input with permutation {transpose.integers('perm')}")
        reshape = self._expect(transpose.inputs[0], "Reshape")
        return self._expect(reshape.inputs[0], "Linear")

    def _expect(self, name: str, operator: str) -> Node:
        node = self._producers[name]
        if node.operator != operator:
            raise InputError(f"{node.operator} between projection and attention is not supported")
        self._dropped.add(id(node))
        return node


def _joined(projections: Sequence[Node]) -> dict[str, Value]:
    return {
        "weights": tuple(name for node in projections for name in node.names("weights")),
        "biases": tuple(name for node in projections for name in node.names("biases")),
        "in_features": projections[0].integer("in_features"),
        "out_features": tuple(n for node in projections for n in node.integers("out_features")),
    }

"""Semantic operators: what a traced model does, before a target says how.

    Embedding(tokens)   rows, columns
    RMSNorm(x)          weight, epsilon, size, plus_one (scaled by 1 + weight)
    HeadNorm(x)         the same over each of `heads` heads; x is [B, S, heads * size]; 1: over all
    Linear(x)           weights (several are joined: they share the input), biases, out_features
    Attention(qkv) or Attention(q, k, v)
                        causal, with the KV cache; num_heads, num_kv_heads, head_dim, scale,
                        window (0: all), softcap (0: none), table ("": no positions), rotary_dim;
                        `fold_scale` moves the scale into the tables
    Split(x)            parts, or sizes, of the channels
    Constant()          value, a number
    Reshape, Add, Mul, Sigmoid, Gelu, Tanh, …   as in ONNX

Weights appear by name. `pack_attention` joins the three projections of an attention, so that every
target sees few shapes of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeshard.errors import InputError

Value = str | int | float | tuple[int | str, ...]
SHARED = "default"  # name of the rotary tables where all blocks share one


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


@dataclass(frozen=True)
class Tables:
    """Cosines and sines `[positions, rotary_dim / 2]` of one kind of block."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]

    def scaled(self, factor: float) -> Tables:
        """The tables times a factor; see `fold_scale`."""
        return Tables(self.cos * np.float32(factor), self.sin * np.float32(factor))


@dataclass(frozen=True)
class Model:
    """A model as semantic nodes; each part turns `hidden` into `hidden_out`.

    Attributes:
        embedding: reads `token_ids` instead of `hidden`.
        blocks: the nodes of each block; blocks of one kind share theirs.
        head: ends in the logits.
    """

    embedding: tuple[Node, ...]
    blocks: tuple[tuple[Node, ...], ...]
    head: tuple[Node, ...]

    @property
    def kinds(self) -> list[tuple[Node, ...]]:
        """The nodes of every kind of block, once each."""
        return list({id(nodes): nodes for nodes in self.blocks}.values())


def fold_scale(model: Model) -> tuple[Model, dict[str, float]]:
    """Move the scale of attention scores into the rotary tables.

    Queries and keys are both turned by the tables, so tables times the root of the scale scale
    their products. With scale 1 ONNX Runtime's CPU kernel reads the keys of a decode step where
    they lie; with any other it copies them first (docs/adr/0009).

    Returns:
        The model, and the factor of every table that took a scale. A table whose attentions differ
        in scale, or turn a part of the channels only, takes none; its attentions keep theirs.
    """
    attentions = [n for nodes in model.kinds for n in nodes if n.operator == "Attention"]
    factors = {}
    for kind in {node.text("table") for node in attentions} - {""}:
        users = [node for node in attentions if node.text("table") == kind]
        scales = {node.number("scale") for node in users}
        whole = all(node.integer("rotary_dim") == node.integer("head_dim") for node in users)
        if len(scales) == 1 and min(scales) > 0 and whole:
            factors[kind] = math.sqrt(scales.pop())
    folded = {
        id(nodes): tuple(
            replace(node, attributes=node.attributes | {"scale": 1.0})
            if node.operator == "Attention" and node.text("table") in factors
            else node
            for node in nodes
        )
        for nodes in model.kinds
    }
    return replace(model, blocks=tuple(folded[id(nodes)] for nodes in model.blocks)), factors


@dataclass(frozen=True)
class _Source:
    """Where a query, key or value comes from: channels of a `Linear`, and a norm on the way."""

    linear: Node
    start: int
    size: int
    norm: Node | None


def pack_attention(nodes: Sequence[Node]) -> list[Node]:
    """Bring every attention into one of two forms, behind one packed `Linear`.

    Linear → Attention(qkv), or with norms of queries and keys
    Linear → Split → HeadNorm, HeadNorm → Attention(q, k, v).

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
        table, rotary_dim, (q, k) = chain.rotary(attention)
        sources = [chain.source(name) for name in (q, k, attention.inputs[2])]
        merge = consumers[attention.outputs[0]]
        if merge.operator != "Reshape":
            raise InputError(f"attention followed by {merge.operator} is not supported")
        dropped.update((id(attention), id(merge)))
        positions: dict[str, Value] = {"table": table, "rotary_dim": rotary_dim}
        attention = replace(
            attention,
            inputs=(f"{merge.outputs[0]}_packed",),
            outputs=merge.outputs,
            attributes=attention.attributes | positions,
        )
        packed[id(merge)] = [_projection(sources, attention), *_normed(sources, attention)]
    result: list[Node] = []
    for node in nodes:
        result += packed.get(id(node), []) if id(node) in dropped else [node]
    return result


def _projection(sources: Sequence[_Source], attention: Node) -> Node:
    """One `Linear` that gives queries, keys and values side by side."""
    heads = attention.integer("num_heads"), *(attention.integer("num_kv_heads"),) * 2
    sizes = [count * attention.integer("head_dim") for count in heads]
    linears = [source.linear for source in sources]
    attributes = linears[0].attributes
    if len({id(linear) for linear in linears}) == 1:
        starts = [source.start for source in sources]
        if starts != [0, sizes[0], sizes[0] + sizes[1]] or linears[0].integers("out_features") != (
            sum(sizes),
        ):
            raise InputError("a projection with queries, keys and values in another order")
    elif any(
        source.start or linear.integers("out_features") != (size,)
        for source, linear, size in zip(sources, linears, sizes, strict=True)
    ):
        raise InputError("attention on a part of a projection is not supported")
    elif len({linear.inputs for linear in linears}) != 1:
        raise InputError("attention whose projections read different inputs is not supported")
    else:
        attributes = join_linears(linears)
    return Node("Linear", linears[0].inputs, attention.inputs, attributes)


def _normed(sources: Sequence[_Source], attention: Node) -> list[Node]:
    """The attention, behind the norms of its queries and keys where it has some."""
    norms = [source.norm for source in sources]
    if norms == [None, None, None]:
        return [attention]
    heads = attention.integer("num_heads"), *(attention.integer("num_kv_heads"),) * 2
    size = attention.integer("head_dim")
    (packed,) = attention.inputs
    names = [f"{packed}_{part}" for part in ("query", "key", "value")]
    sizes: dict[str, Value] = {"sizes": tuple(count * size for count in heads)}
    result = [Node("Split", (packed,), tuple(names), sizes)]
    for index, (norm, count) in enumerate(zip(norms, heads, strict=True)):
        if norm is None:
            continue
        if norm.integer("size") not in (size, count * size):
            raise InputError("a norm over a part of the queries or keys is not supported")
        attributes = norm.attributes | {"heads": count * size // norm.integer("size")}
        output = f"{names[index]}_norm"
        result.append(Node("HeadNorm", (names[index],), (output,), attributes))
        names[index] = output
    return [*result, replace(attention, inputs=tuple(names))]


class _Upstream:
    """Walks from an attention towards its projections, noting what the packed form replaces."""

    def __init__(self, producers: dict[str, Node], dropped: set[int]) -> None:
        self._producers = producers
        self._dropped = dropped

    def rotary(self, attention: Node) -> tuple[str, int, tuple[str, str]]:
        """Table and rotated channels of an attention, and what goes into the rotation."""
        query, key = attention.inputs[:2]
        rotary = self._producers[query]
        if rotary.operator != "Rotary":
            return "", 0, (query, key)
        if rotary.outputs != (query, key):
            raise InputError("attention whose keys are not rotated with its queries")
        table = self._producers[rotary.inputs[2]]
        if table.operator != "Table" or table.outputs != rotary.inputs[2:]:
            raise InputError("a rotary embedding of other angles than the model's tables")
        self._dropped.update((id(rotary), id(table)))
        first, second, *_ = rotary.inputs
        return table.text("kind"), rotary.integer("rotary_dim"), (first, second)

    def source(self, name: str) -> _Source:
        """Follow queries, keys or values through one norm, reshape, transposition and slice."""
        norm = None
        moved = False
        while (node := self._producers[name]).operator != "Linear":
            self._dropped.add(id(node))
            match node.operator:
                case "RMSNorm" if norm is None:
                    norm = node
                case "Transpose" if node.integers("perm") == (0, 2, 1, 3) and not moved:
                    moved = True
                case "Reshape" if len(node.integers("shape")) == 4 and moved:
                    pass
                case "Slice":
                    break
                case _:
                    raise InputError(
                        f"{node.operator} between projection and attention is not supported"
                    )
            name = node.inputs[0]
        start, stop = 0, 0
        if node.operator == "Slice":
            start, stop = node.integer("start"), node.integer("stop")
            node = self._producers[node.inputs[0]]
            if node.operator != "Linear":
                raise InputError(f"a slice of {node.operator} in attention is not supported")
        self._dropped.add(id(node))
        return _Source(node, start, stop - start, norm)


def join_linears(projections: Sequence[Node]) -> dict[str, Value]:
    """Attributes of one `Linear` in place of several that read the same input."""
    return {
        "weights": tuple(name for node in projections for name in node.names("weights")),
        "biases": tuple(name for node in projections for name in node.names("biases")),
        "in_features": projections[0].integer("in_features"),
        "out_features": tuple(n for node in projections for n in node.integers("out_features")),
    }

"""Attention over keys and values in int8: prompts get a way of their own, when a shard is loaded.

    is_prompt ─ If ┬ else: GroupQueryAttention over int8, as the artifact has it
                   └ then: rotate ─ round ─┬─► codes into the cache
                                           ├ × scale ─┐
                           codes before ───┴ × scale ─┴ GroupQueryAttention over float32

ONNX Runtime's kernel for int8 reads each key once for every query, which is quick for one query and
takes a prompt twice as long as the kernel for floats. The way of a prompt sees the same rounded
keys and values, its own among them, so that where a prompt is cut changes nothing
(docs/adr/0039-keys-and-values-in-int8.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeshard.errors import ArtifactError

IS_PROMPT = "is_prompt"  # input of a changed graph, bool []: the step has several positions
MICROSOFT = "com.microsoft"
CODES = -128, 127  # as the kernel clips them
NUM_INPUTS = 14  # of an operator over int8
MOST_HEADS = 1024
OF_INT8 = {"k_quant_type", "v_quant_type", "kv_cache_bit_width"}

Dims = Mapping[str, Sequence[int]]


def keeps_int8(model: onnx.ModelProto) -> bool:
    """Whether any attention of a graph keeps its keys and values in int8."""
    return any(_is_int8(node) for node in model.graph.node)


def with_prompt_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose attentions over int8 go another way where `is_prompt` says so.

    Raises:
        ArtifactError: such an attention is not as the compiler makes them.
    """
    if not keeps_int8(model):
        return model
    dims: Dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(
        _either_way(node, dims) if _is_int8(node) else node for node in model.graph.node
    )
    changed.graph.input.append(helper.make_tensor_value_info(IS_PROMPT, TensorProto.BOOL, []))
    return changed


def _is_int8(node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupQueryAttention" and len(node.input) == NUM_INPUTS


def _check(node: onnx.NodeProto, dims: Dims) -> None:
    """Refuse what could not be taken apart; the file may be anybody's."""
    tables = [name for name in node.input[7:9] if name]
    known = {name: len(dims.get(name, ())) for name in (*tables, *node.input[12:14])}
    heads = {one.name: one.i for one in node.attribute if one.name in ("num_heads", "kv_num_heads")}
    if (
        [*known.values()] != [2] * len(tables) + [4, 4]
        or len(heads) != 2
        or not all(0 < count <= MOST_HEADS for count in heads.values())
        or len(node.output) != 3
    ):
        raise ArtifactError(
            f"operator {node.name} over int8 has not the tables, scales, ends and at most "
            f"{MOST_HEADS} heads that it should; compile again"
        )


def _either_way(node: onnx.NodeProto, dims: Dims) -> onnx.NodeProto:
    """The operator and the way of prompts, behind a condition."""
    _check(node, dims)
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.output[:] = [f"{name}/step" for name in node.output]
    return helper.make_node(
        "If",
        [IS_PROMPT],
        list(node.output),
        name=f"{node.name}/either",
        then_branch=_Prompt(node, dims).graph(),
        else_branch=_branch(f"{node.name}/step", [alone], alone.output),
    )


def _branch(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    kinds = (TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8)
    ends = [
        helper.make_tensor_value_info(output, kind, None)
        for output, kind in zip(outputs, kinds, strict=True)
    ]
    return helper.make_graph(nodes, name, [], ends, constants)


class _Prompt:
    """Builds the way of prompts of one attention; one sequence, as the operator takes no more."""

    def __init__(self, node: onnx.NodeProto, dims: Dims) -> None:
        self._node = node
        self._place = f"{node.name}/prompt"
        self._dims = dims
        self._attributes = {
            one.name: helper.get_attribute_value(one)
            for one in node.attribute
            if one.name not in OF_INT8
        }
        self._heads = self._attributes["num_heads"], *(self._attributes["kv_num_heads"],) * 2
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def graph(self) -> onnx.GraphProto:
        """Its outputs are those of the operator."""
        pasts, lengths = self._node.input[3:5], self._node.input[5:7]
        scales = self._node.input[12:14]
        parts = self._parts(scales[0])
        stop = self._op("Cast", [lengths[1]], to=TensorProto.INT64)
        start = self._op("Sub", [stop, self._op("Shape", [parts[0]], start=1, end=2)])
        ends = [self._op("Squeeze", [one]) for one in (start, stop)]
        places = self._op("Range", [*ends, self._constant(1)])
        query, key, value = self._rotated(*parts, places)
        codes = [self._codes(x, scale) for x, scale in zip((key, value), scales, strict=True)]
        inputs = [self._said(x, scale) for x, scale in zip(codes, scales, strict=True)]
        inputs += [self._before(start, *pair) for pair in zip(pasts, scales, strict=True)]
        attended = self._op(
            "GroupQueryAttention",
            [query, *inputs, *lengths],
            domain=MICROSOFT,
            num_outputs=3,
            **self._attributes | {"do_rotary": 0},
        )
        rows = self._rows(places)
        presents = [self._written(past, rows, x) for past, x in zip(pasts, codes, strict=True)]
        constants = list(self._constants.values())
        return _branch(self._place, self._nodes, [attended, *presents], constants)

    def _parts(self, scale: str) -> tuple[str, str, str]:
        """Queries, keys and values, `[1, S, heads * D]` each."""
        query, key, value = self._node.input[:3]
        if key:
            return query, key, value
        sizes = self._constant([heads * self._dims[scale][-1] for heads in self._heads])
        self._op("Split", [query, sizes], num_outputs=3, axis=-1)
        first, second, third = self._nodes[-1].output
        return first, second, third

    def _rotated(self, query: str, key: str, value: str, places: str) -> tuple[str, str, str]:
        """Queries and keys at their positions `[S]`."""
        if not self._attributes.get("do_rotary"):
            return query, key, value
        tables = list(self._node.input[7:9])
        row = self._op("Unsqueeze", [places, self._constant([0])])
        query, key = (
            self._op(
                "RotaryEmbedding",
                [x, row, *tables],
                domain=MICROSOFT,
                num_heads=heads,
                rotary_embedding_dim=2 * self._dims[tables[0]][1],
            )
            for x, heads in zip((query, key), self._heads, strict=False)
        )
        return query, key, value

    def _codes(self, x: str, scale: str) -> str:
        """New keys or values `[1, S, kv_heads * D]` as the cache keeps them, still floats."""
        codes = self._op("Round", [self._op("Div", [x, self._flat(scale)])])
        return self._op("Clip", [codes, *(self._constant(end, np.float32) for end in CODES)])

    def _said(self, codes: str, scale: str) -> str:
        return self._op("Mul", [codes, self._flat(scale)])

    def _flat(self, scale: str) -> str:
        return self._op("Reshape", [scale, self._constant([-1])])

    def _before(self, start: str, past: str, scale: str) -> str:
        """What is kept of the positions before, `[1, kv_heads, P, D]`."""
        first, axes = self._constant([0]), self._constant([2])
        kept = self._op("Slice", [past, first, start, axes])
        return self._op("Mul", [self._op("Cast", [kept], to=TensorProto.FLOAT), scale])

    def _rows(self, places: str) -> str:
        """Where each row of new codes goes in the cache, `[1, kv_heads, S, 3]`."""
        heads = self._heads[-1]
        column = self._op("Reshape", [places, self._constant([1, 1, -1, 1])])
        column = self._op("Expand", [column, self._constant([1, heads, 1, 1])])
        start = np.stack([np.zeros(heads, np.int64), np.arange(heads)], -1).reshape(1, heads, 1, 2)
        nought = self._op("Sub", [column, column])
        heads_too = self._op("Add", [nought, self._constant(start.tolist())])
        return self._op("Concat", [heads_too, column], axis=-1)

    def _written(self, past: str, rows: str, codes: str) -> str:
        """The cache with the new codes, in place where past and present are one buffer."""
        heads, size = self._heads[-1], self._dims[self._node.input[12]][-1]
        apart = self._op("Reshape", [codes, self._constant([0, 0, heads, size])])
        turned = self._op("Transpose", [apart], perm=[0, 2, 1, 3])
        return self._op("ScatterND", [past, rows, self._op("Cast", [turned], to=TensorProto.INT8)])

    def _op(
        self,
        kind: str,
        inputs: Sequence[str],
        domain: str = "",
        num_outputs: int = 1,
        **attributes: int | float | str | Sequence[int],
    ) -> str:
        """Add a node; its first output."""
        name = f"{self._place}/{len(self._nodes)}/{kind}"
        outputs = [f"{name}/{number}" for number in range(num_outputs)]
        node = helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, value: object, kind: type[np.generic] = np.int64) -> str:
        name = f"{self._place}/{kind.__name__}/{value}"
        self._constants[name] = numpy_helper.from_array(np.asarray(value, kind), name)
        return name

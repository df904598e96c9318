"""Builds an ONNX graph whose weights lie in blobs.

Nodes, values and weights are named by place: `block.3/self_attn.qkv_proj/MatMulNBits`. A weight is
named `BLOB:TENSOR`; which file a blob became, and where in it the tensor starts, is filled in by
`model` once the blobs are written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
# IR 8 is what ONNX Runtime 1.12 reads; 4-bit types need IR 10 (1.18).
IR_VERSIONS = {17: 8, 18: 8, 21: 10}
_BYTES = {
    **{TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2},
    **{TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.UINT4: 0.5},
}


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies: a file of the blob folder, and a byte range in it."""

    filename: str
    offset: int
    length: int


class GraphBuilder:
    """Collects the nodes, ends and weights of one unit.

    Args:
        place: prefix of every name that belongs to this unit alone.
        opset: version of the standard operators.
    """

    def __init__(self, place: str, opset: int) -> None:
        self.place = place
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._weights: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._counts: dict[str, int] = {}
        # Weights that lie in another unit's blob, by name: `BLOB:TENSOR`.
        self.blob_of: dict[str, str] = {}
        # Values that several operators of this graph share, by a key of the lowering's choice.
        self.shared: dict[str, str] = {}

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Add a graph input; strings in `shape` name free axes."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Add a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def weight(self, name: str, kind: int, shape: Sequence[int]) -> str:
        """Refer to a tensor `BLOB:TENSOR`; the same bytes may be seen under several shapes."""
        # Packed codes are seen as a table by one unit and as blocks by another: two names.
        view = f":{TensorProto.DataType.Name(kind).lower()}{list(shape)}"
        label = name if kind == TensorProto.FLOAT else name + view
        self._weights[label] = (kind, tuple(shape))
        return label

    def constant(self, value: NDArray[np.generic]) -> str:
        """A small constant inside the graph; equal ones are kept once."""
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:12]
        name = f"constant/{value.dtype.name}{list(value.shape)}/{digest}"
        self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def op(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        domain: str = "",
        at: str = "",
        outputs: Sequence[str] = (),
        **attributes: int | float | str | Sequence[int],
    ) -> str:
        """Add a node and return its first output, which gets a name by place unless given."""
        path = "/".join(part for part in (self.place, at, operator) if part)
        count = self._counts[path] = self._counts.get(path, -1) + 1
        path += f"_{count}" if count else ""
        names = list(outputs) or [f"{path}/output_0"]
        self._nodes.append(
            helper.make_node(operator, inputs, names, name=path, domain=domain, **attributes)
        )
        return names[0]

    @property
    def blobs(self) -> list[str]:
        """Labels of the blobs that the graph points into, each once, in order of use."""
        return list(dict.fromkeys(name.split(":")[0] for name in self._weights))

    def model(self, extents: Mapping[str, Extent]) -> onnx.ModelProto:
        """The graph as a model; weights point at `extents`, keyed `BLOB:TENSOR`."""
        initializers = list(self._constants.values())
        for label, (kind, shape) in self._weights.items():
            extent = extents[":".join(label.split(":")[:2])]
            # A shared blob may be longer than this view of it (zero points).
            length = math.ceil(np.prod(shape) * _BYTES[kind])
            tensor = TensorProto(name=label, data_type=kind, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", extent.filename),
                ("offset", str(extent.offset)),
                ("length", str(length)),
            ):
                tensor.external_data.add(key=key, value=value)
            initializers.append(tensor)
        graph = helper.make_graph(
            self._nodes, self.place, self._inputs, self._outputs, initializers
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="edgeshard",
        )

    def structure(self) -> str:
        """Digest of the graph without its weights' whereabouts."""
        nowhere = {":".join(label.split(":")[:2]): Extent("-", 0, 0) for label in self._weights}
        data = self.model(nowhere).SerializeToString(deterministic=True)
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

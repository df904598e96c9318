"""Scales of quantised weights, multiplied out before ONNX Runtime sees the graph.

    int8 counts [rows, blocks] ─ Cast ┬ Mul ─► float32 scales [rows, blocks]
    float32 steps [rows, 1] ──────────┘

ONNX Runtime would do so when it loads the graph, and keep the products on its heap beside weights
that it has packed together with them: half a bit for each weight in blocks of 64, read no more.
Here they lie in a mapped file without a name, so that the system may take their pages, and reads
them again where a kernel does want them (docs/adr/0029-scales-in-a-file.md).
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.system import forget_pages, reserve

ALIGN_BYTES = 64
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class _Product:
    """Names of a product of two constants, and of the node between."""

    name: str
    counts: onnx.TensorProto
    steps: onnx.TensorProto
    cast: str

    @property
    def num_values(self) -> int:
        return int(np.prod(self.counts.dims))


class ScaleFile:
    """The scales of a graph. Keep it as long as its session, whose constants lie in it."""

    def __init__(self, store: Store, graph: onnx.ModelProto, products: list[_Product]) -> None:
        self._folder = store.root.resolve()
        self._graph = graph
        self._products = {one.name: one for one in products}
        # A cache line each, so that none is written by two kernels' threads.
        sizes = [-(-one.num_values * 4 // ALIGN_BYTES) * ALIGN_BYTES for one in products]
        self._offsets = dict(zip(self._products, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115  # `settle` closes it
            dir=self._folder / "incoming"
        )
        try:
            reserve(self._file.fileno(), sum(sizes))
            self._pages = mmap.mmap(self._file.fileno(), sum(sizes))
            self._values = [self._multiply(one) for one in products]
        except BaseException:
            self._file.close()
            raise

    def graph(self) -> bytes:
        """The graph with its products as constants; weights are named from the store's root."""
        changed = onnx.ModelProto()
        changed.CopyFrom(self._graph)
        gone = {*self._products, *(one.cast for one in self._products.values())}
        nodes = [node for node in changed.graph.node if not gone.intersection(node.output)]
        read = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in changed.graph.initializer if tensor.name in read]
        for tensor in tensors:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"blobs/{entry.value}"
        tensors += [self._tensor(one) for one in self._products.values()]
        for field, kept in ((changed.graph.node, nodes), (changed.graph.initializer, tensors)):
            kept = [type(item).FromString(item.SerializeToString()) for item in kept]
            del field[:]
            field.extend(kept)
        made: bytes = changed.SerializeToString()
        return made

    def add_to(self, options: ort.SessionOptions) -> None:
        """Have a session find the weights, and its scales in our pages."""
        options.add_session_config_entry(FOLDER_OPTION, str(self._folder))
        for name, value in zip(self._products, self._values, strict=True):
            options.add_initializer(name, value)

    def settle(self) -> None:
        """Once a session is loaded: take the file's name away, and give its pages back."""
        self._file.close()
        forget_pages(self._pages)

    def _multiply(self, one: _Product) -> ort.OrtValue:
        counts = self._read(one.counts, np.dtype(np.int8))
        steps = self._read(one.steps, np.dtype(np.float32))
        scales: NDArray[np.float32] = np.frombuffer(
            self._pages, np.float32, counts.size, self._offsets[one.name]
        ).reshape(counts.shape)
        np.multiply(counts, steps, out=scales, dtype=np.float32)
        return ort.OrtValue.ortvalue_from_numpy(scales)

    def _read(self, tensor: onnx.TensorProto, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
        entries = {item.key: item.value for item in tensor.external_data}
        path = self._folder / "blobs" / entries["location"]
        count = int(np.prod(tensor.dims))
        return np.fromfile(path, kind, count, offset=int(entries["offset"])).reshape(tensor.dims)

    def _tensor(self, one: _Product) -> onnx.TensorProto:
        place = {
            "location": f"incoming/{Path(self._file.name).name}",
            "offset": str(self._offsets[one.name]),
            "length": str(one.num_values * 4),
        }
        return onnx.TensorProto(
            name=one.name,
            dims=one.counts.dims,
            data_type=onnx.TensorProto.FLOAT,
            data_location=onnx.TensorProto.EXTERNAL,
            external_data=[
                onnx.StringStringEntryProto(key=key, value=value) for key, value in place.items()
            ],
        )


def scale_file(store: Store, graph: onnx.ModelProto) -> ScaleFile | None:
    """The scales of a checked graph; None where there are none, or no room for a file."""
    products = list(_products(graph))
    if not products:
        return None
    with contextlib.suppress(OSError):  # as before, then: ONNX Runtime multiplies
        return ScaleFile(store, graph, products)
    return None


def _products(graph: onnx.ModelProto) -> Iterator[_Product]:
    """Products of int8 counts and float32 steps that lie in blobs."""
    constants = {
        tensor.name: tensor
        for tensor in graph.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    for node in graph.graph.node:
        if node.op_type != "Mul" or node.input[0] not in casts:
            continue
        counts = constants.get(casts[node.input[0]].input[0])
        steps = constants.get(node.input[1])
        if counts is None or steps is None:
            continue
        kinds = (counts.data_type, steps.data_type)
        if kinds == (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT):
            yield _Product(node.output[0], counts, steps, node.input[0])

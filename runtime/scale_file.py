"""Scales of quantised weights and codes of 6 bits, made before ONNX Runtime sees the graph.

    int8 counts [rows, blocks] ─ Cast ┬ Mul ─► float32 scales [rows, blocks]
    float32 steps [rows, 1] ──────────┘
    packed [rows, 3K/4] ┬ BitShift ───────────────────┬ Concat (─ Reshape) ─► a byte for a code
                        └ BitShift ─ … ─ BitwiseOr ───┘

ONNX Runtime would do so when it loads the graph, and keep the products on its heap beside weights
that it has packed together with them: half a bit for each weight in blocks of 64, read no more.
Here they lie in a mapped file without a name, so that the system may take their pages, and reads
them again where a kernel does want them (docs/adr/0029-scales-in-a-file.md). Codes would be
on its heap only until they are packed, but all of them at once and with every value between.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.system import forget_pages, reserve

ALIGN_BYTES = 64
UNPACKING = {"BitShift", "BitwiseOr", "Split"}
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


Tensors = Mapping[str, onnx.TensorProto]
Read = Callable[[onnx.TensorProto, type[np.generic]], NDArray[np.generic]]


class _Constant(ABC):
    """A value that constants make.

    Attributes:
        gone: outputs of the nodes that make it, its own name among them.
    """

    kind: int
    dtype: type[np.generic]

    def __init__(self, name: str, dims: Sequence[int], gone: set[str]) -> None:
        self.name = name
        self.dims = tuple(dims)
        self.gone = gone

    @property
    def num_bytes(self) -> int:
        return math.prod(self.dims) * np.dtype(self.dtype).itemsize

    @abstractmethod
    def fill(self, values: NDArray[Any], read: Read) -> None:
        """Compute it into an array of its shape."""


class _Scales(_Constant):
    kind, dtype = onnx.TensorProto.FLOAT, np.float32

    def __init__(self, nodes: Sequence[onnx.NodeProto], *factors: onnx.TensorProto) -> None:
        gone = {node.output[0] for node in nodes}
        super().__init__(nodes[-1].output[0], factors[0].dims, gone)
        self._counts, self._steps = factors

    def fill(self, values: NDArray[Any], read: Read) -> None:
        counts, steps = read(self._counts, np.int8), read(self._steps, np.float32)
        np.multiply(counts, steps, out=values, dtype=np.float32)


class _Codes(_Constant):
    kind, dtype = onnx.TensorProto.UINT8, np.uint8

    def __init__(
        self, name: str, dims: Sequence[int], gone: set[str], packed: onnx.TensorProto
    ) -> None:
        super().__init__(name, dims, gone)
        self._packed = packed

    def fill(self, values: NDArray[Any], read: Read) -> None:
        packed: NDArray[Any] = read(self._packed, np.uint8)
        rows, width = packed.shape
        codes = values.reshape(rows, width * 4 // 3)
        np.left_shift(packed, 2, out=codes[:, :width])
        for bit, top in zip((2, 4, 6), np.split(packed >> 6, 3, axis=1), strict=True):
            codes[:, width:] |= top << bit


class ScaleFile:
    """What a graph makes of constants. Keep it as long as the session that has them."""

    def __init__(self, store: Store, graph: onnx.ModelProto, products: list[_Constant]) -> None:
        self._folder = store.root.resolve()
        self._graph = graph
        self._products = {one.name: one for one in products}
        # A cache line each, so that none is written by two kernels' threads.
        sizes = [-(-one.num_bytes // ALIGN_BYTES) * ALIGN_BYTES for one in products]
        self._offsets = dict(zip(self._products, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115  # `settle` closes it
            dir=self._folder / "incoming"
        )
        try:
            reserve(self._file.fileno(), sum(sizes))
            self._pages = mmap.mmap(self._file.fileno(), sum(sizes))
            self._values = [self._make(one) for one in products]
            forget_pages(self._pages)
        except BaseException:
            self._file.close()
            raise

    def graph(self) -> onnx.ModelProto:
        """The graph with these as constants; weights are named from the store's root."""
        changed = from_root(self._graph)
        gone = {output for one in self._products.values() for output in one.gone}
        nodes = [node for node in changed.graph.node if not gone.intersection(node.output)]
        read = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in changed.graph.initializer if tensor.name in read]
        tensors += [self._tensor(one) for one in self._products.values()]
        for field, kept in ((changed.graph.node, nodes), (changed.graph.initializer, tensors)):
            kept = [type(item).FromString(item.SerializeToString()) for item in kept]
            del field[:]
            field.extend(kept)
        return changed

    def add_to(self, options: ort.SessionOptions) -> None:
        """Have a session find its scales in our pages."""
        for name, value in zip(self._products, self._values, strict=True):
            options.add_initializer(name, value)

    def settle(self) -> None:
        """Once a session is loaded: take the file's name away, and give its pages back."""
        self._file.close()
        forget_pages(self._pages)

    def _make(self, one: _Constant) -> ort.OrtValue:
        values: NDArray[Any] = np.frombuffer(
            self._pages, one.dtype, math.prod(one.dims), self._offsets[one.name]
        ).reshape(one.dims)
        one.fill(values, self._read)
        return ort.OrtValue.ortvalue_from_numpy(values)

    def _read(self, tensor: onnx.TensorProto, kind: type[np.generic]) -> NDArray[np.generic]:
        entries = {item.key: item.value for item in tensor.external_data}
        path = self._folder / "blobs" / entries["location"]
        count = int(np.prod(tensor.dims))
        return np.fromfile(path, kind, count, offset=int(entries["offset"])).reshape(tensor.dims)

    def _tensor(self, one: _Constant) -> onnx.TensorProto:
        place = {
            "location": f"incoming/{Path(self._file.name).name}",
            "offset": str(self._offsets[one.name]),
            "length": str(one.num_bytes),
        }
        return onnx.TensorProto(
            name=one.name,
            dims=one.dims,
            data_type=one.kind,
            data_location=onnx.TensorProto.EXTERNAL,
            external_data=[
                onnx.StringStringEntryProto(key=key, value=value) for key, value in place.items()
            ],
        )


def from_root(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are named from a store's root, for a session made of bytes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"blobs/{entry.value}"
    return copy


def scale_file(store: Store, graph: onnx.ModelProto) -> ScaleFile | None:
    """Scales and codes of a checked graph; None where there are none, or no room for a file."""
    constants = {
        tensor.name: tensor
        for tensor in graph.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    products = [*_scales(graph, constants), *_codes(graph, constants)]
    if not products:
        return None
    with contextlib.suppress(OSError):  # as before, then: ONNX Runtime computes
        return ScaleFile(store, graph, products)
    return None


def _scales(graph: onnx.ModelProto, constants: Tensors) -> Iterator[_Constant]:
    """Products of int8 counts and float32 steps that lie in blobs."""
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    for node in graph.graph.node:
        if node.op_type != "Mul" or node.input[0] not in casts:
            continue
        cast = casts[node.input[0]]
        counts, steps = constants.get(cast.input[0]), constants.get(node.input[1])
        if counts is None or steps is None:
            continue
        kinds = (counts.data_type, steps.data_type)
        if kinds == (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT):
            yield _Scales((cast, node), counts, steps)


def _codes(graph: onnx.ModelProto, constants: Tensors) -> Iterator[_Constant]:
    """Codes of 6 bits that lie in blobs, as `compiler/lowering.py` unpacks them."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    reshapes = {node.input[0]: node for node in graph.graph.node if node.op_type == "Reshape"}
    small = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tolist()
        for tensor in graph.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    for node in graph.graph.node:
        if node.op_type != "Concat":
            continue
        behind = _behind(node, makers)
        shifts = [small.get(one.input[1]) for one in behind if one.op_type == "BitShift"]
        read = {name for one in behind for name in one.input if name in constants}
        if sorted(shifts, key=str) != [2, 2, 4, 6, 6] or len(read) != 1:
            continue  # of something else, or of rows that are looked up
        packed = constants[read.pop()]
        if packed.data_type != onnx.TensorProto.UINT8:
            continue
        rows, width = packed.dims
        dims = [rows, width * 4 // 3]
        reshape = reshapes.get(node.output[0])
        if reshape is not None and reshape.input[1] in small:
            behind.append(reshape)
            dims = small[reshape.input[1]]
        gone = {output for one in behind for output in one.output}
        yield _Codes(behind[-1].output[0], dims, gone, packed)


def _behind(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that make a node's inputs, and itself last; none where it waits for an input."""
    found, names = {node.name: node}, list(node.input)
    while names:
        maker = makers.get(names.pop())
        if maker is None or maker.name in found:
            continue
        if maker.op_type not in UNPACKING:
            return []
        found[maker.name] = maker
        names += maker.input
    return [*found.values()][::-1]

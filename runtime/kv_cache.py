"""Memory for keys and values, on the device that computes with them.

    arrays[i]   [slots, kv_heads, C, head_dim]   one for each block and part, all slots of it

Rows of an array are neighbouring slots; they are bound by address. On the CPU all arrays are parts
of one, large enough that numpy asks for huge pages, which long contexts are a quarter faster with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from edgeshard.errors import DeviceError
from edgeshard.schemas.common import CacheType
from edgeshard.schemas.targets import ON_GPU

# numpy has no bfloat16: ONNX Runtime takes its number in the standard instead.
KINDS: dict[CacheType, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": np.int8,
}


def device_of(provider: str) -> str:
    """Where a provider computes, as ONNX Runtime calls it."""
    return "cuda" if provider in ON_GPU else "cpu"


@dataclass(frozen=True)
class CacheArray:
    """An array in a device's memory.

    Attributes:
        owner: what frees it.
        array: the same memory for numpy, where it can reach it.
    """

    device: str
    kind: Any
    shape: tuple[int, ...]
    address: int
    num_bytes: int
    owner: object
    array: NDArray[Any] | None = None

    def bind_input(self, binding: ort.IOBinding, name: str, first: int, count: int) -> None:
        """Bind rows `[first, first + count)` as an input."""
        binding.bind_input(name, self.device, 0, self.kind, *self._rows(first, count))

    def bind_output(self, binding: ort.IOBinding, name: str, first: int, count: int) -> None:
        """Bind rows `[first, first + count)` as an output."""
        binding.bind_output(name, self.device, 0, self.kind, *self._rows(first, count))

    def copy_start(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another one.

        Raises:
            DeviceError: the array lies where this process cannot write.
        """
        if self.array is None:
            raise DeviceError(f"keys and values on {self.device} cannot be copied between slots")
        self.array[target, :, :length] = self.array[source, :, :length]

    def _rows(self, first: int, count: int) -> tuple[tuple[int, ...], int]:
        offset = first * (self.num_bytes // self.shape[0])
        return (count, *self.shape[1:]), self.address + offset


def make_arrays(
    count: int, shape: Sequence[int], dtype: CacheType, provider: str
) -> list[CacheArray]:
    """Arrays of zeros."""
    if not count:
        return []
    device, kind, shape = device_of(provider), KINDS[dtype], tuple(shape)
    if device == "cpu":
        whole = np.zeros((count, *shape), kind)
        return [
            CacheArray(device, kind, shape, part.ctypes.data, part.nbytes, whole, part)
            for part in whole
        ]
    return [_device_array(device, kind, shape, dtype) for _ in range(count)]


def _device_array(device: str, kind: Any, shape: tuple[int, ...], dtype: CacheType) -> CacheArray:
    if dtype == "bfloat16":  # not zeroed; no target with bfloat16 reads what it has not written
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)
    else:
        value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind), device, 0)
    num_bytes = int(np.prod(shape)) * (2 if dtype == "bfloat16" else np.dtype(kind).itemsize)
    return CacheArray(device, kind, shape, value.data_ptr(), num_bytes, value)

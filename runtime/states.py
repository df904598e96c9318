"""Hidden states as bytes and back, in the type that the plan chose for a link.

    fp32   [B, S, hidden] as they are, bit for bit
    fp16   rounded to the nearest
    int8   scales [B, S, blocks], then codes [B, S, hidden]; code = round(127 value / peak)

Axes: B rows (requests), S positions. Rule: a row is encoded from itself alone, and a row that the
type cannot hold (NaN, infinity, beyond the range of fp16) is named, never rounded into a number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeshard.errors import DeviceError
from edgeshard.runtime.wire import ProtocolError
from edgeshard.schemas.activation import SCALE_BYTES, block_values
from edgeshard.schemas.common import Activation

Floats = NDArray[np.float32]

LARGEST_CODE = 127
SMALLEST_PEAK = np.float32(2.0**-100)  # of a block below it all codes are 0: its inverse overflows
LARGEST_HALF = 65504


class Encoded(NamedTuple):
    """States as bytes.

    Attributes:
        lost: rows that cannot travel so; zeros hold their place.
    """

    payload: memoryview
    lost: tuple[int, ...] = ()


def encode_states(states: Floats, activation: Activation) -> Encoded:
    """Make the payload of a step from states `[B, S, hidden]`."""
    states = np.ascontiguousarray(states)
    if activation == "fp32":
        return Encoded(states.data.cast("B"))
    make = _to_half if activation == "fp16" else _to_codes
    payload, is_whole = make(states)
    if is_whole.all():
        return Encoded(payload)
    payload, _ = make(np.where(is_whole[:, None, None], states, np.float32(0)))
    return Encoded(payload, tuple(int(row) for row in np.flatnonzero(~is_whole)))


def decode_states(
    payload: memoryview, activation: Activation, num_rows: int, num_tokens: int, hidden_size: int
) -> Floats:
    """States `[B, S, hidden]` of a payload whose length was checked already.

    Raises:
        ProtocolError: a lossy payload holds what no encoder makes: NaN or infinity.
    """
    shape = (num_rows, num_tokens, hidden_size)
    if activation == "fp32":
        states = np.frombuffer(payload, np.float32).reshape(shape)
        return states if states.flags.aligned else states.copy()
    if activation == "fp16":
        halves = np.frombuffer(payload, np.float16)
        _refuse_unless(bool(np.isfinite(halves).all()), "a value")
        return halves.astype(np.float32).reshape(shape)
    block = block_values(hidden_size)
    num_blocks = num_rows * num_tokens * hidden_size // block
    scales = np.frombuffer(payload, np.float32, num_blocks)
    _refuse_unless(bool(np.isfinite(scales).all()), "a scale")
    codes = np.frombuffer(payload, np.int8, offset=num_blocks * SCALE_BYTES)
    product = np.multiply(codes.reshape(num_blocks, block), scales[:, None], dtype=np.float32)
    return product.reshape(shape)


def unsendable(activation: Activation) -> DeviceError:
    """Why a row of hidden states cannot travel as `activation`."""
    limit = f" or exceed {LARGEST_HALF}" if activation == "fp16" else ""
    return DeviceError(
        f"hidden states are not finite{limit}, so they cannot travel as {activation}: "
        "plan with --activation fp32"
    )


def _refuse_unless(is_finite: bool, what: str) -> None:
    if not is_finite:
        raise ProtocolError(f"{what} of the hidden states is not finite")


def _to_half(states: Floats) -> tuple[memoryview, NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        halves = states.astype(np.float16)
    is_whole = np.asarray(np.isfinite(halves).reshape(len(states), -1).all(axis=1))
    return halves.data.cast("B"), is_whole


def _to_codes(states: Floats) -> tuple[memoryview, NDArray[np.bool_]]:
    block = block_values(states.shape[2])
    values = states.reshape(-1, block)
    peaks = np.maximum(values.max(axis=1), -values.min(axis=1))  # NaN stays NaN
    is_whole = np.isfinite(peaks).reshape(len(states), -1).all(axis=1)
    data = np.empty(len(values) * SCALE_BYTES + values.size, np.uint8)
    if not is_whole.all():
        return data.data, is_whole
    is_zero = peaks < SMALLEST_PEAK
    peaks[is_zero] = 0
    scales = data[: len(values) * SCALE_BYTES].view(np.float32)
    np.divide(peaks, np.float32(LARGEST_CODE), out=scales)
    peaks[is_zero] = np.inf
    inverse = np.float32(LARGEST_CODE) / peaks
    codes = data[len(values) * SCALE_BYTES :].view(np.int8).reshape(values.shape)
    scaled = values * inverse[:, None]
    np.rint(scaled, out=scaled)
    codes[...] = scaled
    return data.data, is_whole

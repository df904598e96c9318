"""How a weight matrix `[N, K]` lies in a blob, and what turns it into that and back.

    float          weight   f32 [N, K]
    blocks         codes    u8  [N, K*bits/8]   low nibble first
                   scales   f32 [N, K/block]        w = scale · (code − 2^(bits−1))
    offset_blocks  the same, and
                   offsets  f32 [K/block, N]        w = scale · (code − 8) + offset
    rows           codes    i8  [N, K]              w = scale · code
                   scales   f32 [N]
    step_blocks    codes    as above
                   scales   i8  [N, K/block]
                   steps    f32 [N, 1]              w = step · scale · (code − 2^(bits−1))
                   or, with 6 bits, codes  u8 [N, 3K/4]  codes of 8 bits without their lowest two
    zero_blocks    the same, and
                   zeros    u8  [N, ⌈K/block/2⌉]  low nibble first
                                                    w = step · scale · (code − zero)

N rows (outputs), K columns (inputs). GGUF's Q4_0 and Q8_0 are `blocks` of 32, and Q4_1, whose
blocks have a minimum m, is `offset_blocks` with offset = m + 8 · scale: the symmetric kernel stays
fast and the rest is a small float product over block sums of the input. All three are imported bit
for bit. What we quantise ourselves is `step_blocks` or `zero_blocks`: a scale is one byte, and
`scale_search.py` chooses it. Where a model computes in 16 bits, what is f32 here lies in the blob
in that type; steps and scales of rows do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.error_feedback import follow
from edgeshard.compiler.kernels import pack_nibbles
from edgeshard.compiler.scale_search import (
    LANES,
    MAX_SCALE,
    SYMMETRIC_REACH,
    WIDTHS,
    encode_blocks,
    find_scales,
)

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
GGUF_BLOCK = 32


@dataclass(frozen=True)
class Encoding:
    """A way to store a matrix; `bits` and `block` are 32 and 1 for floats."""

    kind: Literal["float", "blocks", "offset_blocks", "step_blocks", "zero_blocks", "rows"]
    bits: int = 32
    block: int = 1

    def parts(self, rows: int, columns: int) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
        """Type and shape of every part of a `[rows, columns]` matrix, in the order of a blob."""
        if self.kind == "float":
            return {"weight": (np.float32, (rows, columns))}
        if self.kind == "rows":
            return {"scales": (np.float32, (rows,)), "codes": (np.int8, (rows, columns))}
        num_blocks = columns // self.block
        parts: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "scales": (np.int8 if self.has_steps else np.float32, (rows, num_blocks)),
            "codes": (np.uint8, (rows, columns * self.bits // 8)),
        }
        if self.has_steps:
            parts["steps"] = (np.float32, (rows, 1))
        if self.kind == "zero_blocks":
            parts["zeros"] = (np.uint8, (rows, num_zero_bytes(num_blocks)))
        if self.kind == "offset_blocks":
            parts["offsets"] = (np.float32, (num_blocks, rows))
        return parts

    @property
    def read_bits(self) -> int:
        """Bits of a code as a kernel reads it; none reads 6 (docs/adr/0017)."""
        return 8 if self.bits == 6 else self.bits

    @property
    def has_steps(self) -> bool:
        """Whether a scale is a byte that counts steps of its row."""
        return self.kind in ("step_blocks", "zero_blocks")

    def stored_bits(self, columns: int) -> float:
        """Bits of a weight with its share of scales and zero points."""
        parts = self.parts(1, columns).values()
        return (
            sum(8 * np.dtype(kind).itemsize * math.prod(shape) for kind, shape in parts) / columns
        )


FLOAT = Encoding("float")
ROWS = Encoding("rows", 8)
STORED: dict[str, Encoding] = {
    "Q4_0": Encoding("blocks", 4, GGUF_BLOCK),
    "Q4_1": Encoding("offset_blocks", 4, GGUF_BLOCK),
    "Q8_0": Encoding("blocks", 8, GGUF_BLOCK),
}


def num_zero_bytes(num_blocks: int) -> int:
    """Bytes of a row's zero points; the last one may be half full."""
    return -(-num_blocks // 2)


def block_encoding(bits: int, columns: int, *, fine: bool = False, zeros: bool = True) -> Encoding:
    """The encoding for `bits` that fits `columns`; floats where no block does.

    Blocks of 64, at 4 bits with zero points: a loaded block costs eight bytes beside its codes, so
    smaller ones are read more slowly than they are stored (docs/adr/0023). At 8 bits they lose less
    than the rounding of the activations.

    Args:
        bits: 4, 6 or 8.
        columns: length of a row.
        fine: blocks of 32 at 4 bits: less lost for a stored bit, at the price of speed.
        zeros: zero points at 4 bits: less lost, at the price of speed.
    """
    for block in (32, 16) if fine and bits == 4 else (64, 32, 16):
        if columns % block == 0:
            return Encoding("zero_blocks" if zeros and bits == 4 else "step_blocks", bits, block)
    return FLOAT


def quantise(
    weight: Floats,
    encoding: Encoding,
    importance: Floats | None = None,
    moved: Floats | None = None,
) -> dict[str, Array]:
    """Encode a float matrix `[N, K]` so that little is lost.

    Args:
        weight: finite values.
        encoding: floats, or blocks with steps.
        importance: `[K]`, what a squared error in each column counts; without it all count alike.
        moved: `[K, K]`, how later columns make up for earlier ones; without it none does.
    """
    if encoding.kind == "float":
        return {"weight": np.ascontiguousarray(weight, np.float32)}
    if encoding.kind == "rows":
        return _quantise_rows(weight)
    assert encoding.has_steps, encoding
    assert encoding.block % 16 == 0, encoding
    rows, columns = weight.shape
    shape = (rows, columns // encoding.block)
    values = np.ascontiguousarray(weight, np.float32).reshape(-1)
    with_zeros = encoding.kind == "zero_blocks"
    top = 2.0**encoding.bits - 1
    num_blocks = math.prod(shape)
    more = -num_blocks % LANES
    padded = np.pad(values, (0, more * encoding.block)) if more else values
    flat = np.empty(num_blocks + more, np.float32), np.empty(num_blocks + more, np.uint8)
    grids = WIDTHS if with_zeros else SYMMETRIC_REACH[encoding.bits]
    find_scales(padded, importance, encoding.block, top, grids, with_zeros, *flat)
    wanted, zeros = (found[:num_blocks].reshape(shape) for found in flat)
    steps = np.abs(wanted).max(1, keepdims=True) / np.float32(MAX_SCALE)
    scales, codes = np.empty(shape, np.int8), np.empty((rows, columns), np.uint8)
    encode_blocks(
        values,
        importance,
        shape[1],
        top,
        steps.reshape(-1),
        wanted.reshape(-1),
        zeros.reshape(-1),
        encoding.bits > 4,
        scales.reshape(-1),
        codes.reshape(-1),
    )
    if moved is not None:
        follow(
            values.reshape(weight.shape),
            scales * steps,
            zeros.astype(np.float32),
            top,
            moved,
            codes,
        )
    parts: dict[str, Array] = {
        "scales": scales,
        "codes": _pack(codes, encoding.bits),
        # In steps of the codes that are read: one of 6 bits is read four times as large.
        "steps": steps * np.float32(2.0 ** (encoding.bits - encoding.read_bits)),
    }
    if with_zeros:
        odd = shape[1] % 2
        parts["zeros"] = _pack(np.pad(zeros, ((0, 0), (0, odd))) if odd else zeros, 4)
    return parts


def _quantise_rows(weight: Floats) -> dict[str, Array]:
    """Codes from -127 to 127: TensorRT's range for weights."""
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(weight * inverse[:, None]), -127, 127)
    return {"scales": scales, "codes": codes.astype(np.int8)}


def import_gguf(raw: NDArray[np.uint8], stored_type: str) -> dict[str, Array]:
    """Repack rows of GGUF blocks `[N, bytes]` without requantising."""
    encoding = STORED[stored_type]
    header = {"Q4_0": 2, "Q4_1": 4, "Q8_0": 2}[stored_type]
    size = header + GGUF_BLOCK * encoding.bits // 8
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, size)
    constants = np.ascontiguousarray(blocks[:, :, :header]).view(np.float16).astype(np.float32)
    scales, body = constants[:, :, 0], blocks[:, :, header:]
    if encoding.bits == 8:
        return {"scales": scales, "codes": (body ^ 0x80).reshape(rows, -1)}
    # GGUF keeps value j and value j + 16 of a block in one byte.
    codes = np.concatenate((body & 0x0F, body >> 4), axis=2).reshape(rows, -1)
    parts: dict[str, Array] = {"scales": scales, "codes": _pack(codes, 4)}
    if encoding.kind == "offset_blocks":
        parts["offsets"] = np.ascontiguousarray((constants[:, :, 1] + 8 * scales).T)
    return parts


def decode(parts: dict[str, Array], encoding: Encoding) -> Floats:
    """Reproduce the float matrix `[N, K]` from its parts."""
    if encoding.kind == "float":
        return np.asarray(parts["weight"], np.float32)
    if encoding.kind == "rows":
        return parts["codes"].astype(np.float32) * parts["scales"].astype(np.float32)[:, None]
    codes = np.asarray(parts["codes"], np.uint8)
    rows = codes.shape[0]
    if encoding.bits == 4:
        codes = _unpack(codes)
    elif encoding.bits == 6:
        codes = _unpack_sixes(codes)
    blocks = codes.reshape(rows, -1, encoding.block).astype(np.float32)
    if encoding.kind == "zero_blocks":
        zeros = _unpack(np.asarray(parts["zeros"], np.uint8))
        blocks -= zeros[:, : blocks.shape[1], None]
    else:
        blocks -= 2 ** (encoding.read_bits - 1)
    scales = np.asarray(parts["scales"], np.float32)
    if encoding.has_steps:
        scales = scales * np.asarray(parts["steps"], np.float32)
    blocks *= scales[:, :, None]
    if encoding.kind == "offset_blocks":
        blocks += np.asarray(parts["offsets"], np.float32).T[:, :, None]
    return np.asarray(blocks.reshape(rows, -1), np.float32)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    if bits == 6:
        return _pack_sixes(codes)
    packed = np.empty((codes.shape[0], codes.shape[1] // 2), np.uint8)
    pack_nibbles(np.ascontiguousarray(codes).reshape(-1), packed.reshape(-1))
    return packed


def _pack_sixes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three quarters of a row, a code a byte; above them, two bits each, the codes of the last."""
    own, last = np.split(codes, [codes.shape[1] * 3 // 4], axis=1)
    shared = np.concatenate([last >> bit & 3 for bit in (0, 2, 4)], axis=1)
    return np.asarray(own | shared << 6, np.uint8)


def _unpack_sixes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of 8 bits whose lowest two are 0, as `Lowering.six_bit_codes` makes them."""
    low, middle, high = np.split(packed >> 6, 3, axis=1)
    return np.concatenate((packed << 2, low << 2 | middle << 4 | high << 6), axis=1)


def _unpack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack((codes & 0x0F, codes >> 4), axis=-1).reshape(codes.shape[0], -1)

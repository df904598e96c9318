"""Finds the scales, zero points and codes of blocks that lose least, in loops compiled by numba.

    w = step · scale · (code − zero)     step f32 for a row, scale int8 and zero uint8 for a block

Some grids are tried on every block: the widest just reaches its ends, narrower ones clip a few
values and are finer for the rest. For given codes the best scale is a least-squares fit with the
error Σ w·x² − (Σ w·q·x)² / Σ w·q² left, so that the largest last term wins (x values over the
block's largest, q codes about the zero point, w importance of a column). Scales are then rounded to
steps of their row: with 4 bits to the nearest, with more of them, or few steps, to the better of
both neighbours (docs/adr/0012).

A lane is a block: 16 of them go side by side, and what is summed for each is summed in parts first,
which leaves the processor no chain of additions to wait for. The order is thus fixed by the code:
the same weights give the same bytes on every machine. No `fastmath`, for the same reason.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.jit import compiled
from edgeshard.compiler.vectors import TILE, fma, transpose_tile

Floats = NDArray[np.float32]

LANES = 16
MAX_SCALE = 127
# How far the symmetric grid's long side reaches, in codes: from clipping a quarter to none.
SYMMETRIC_REACH = {
    4: np.linspace(6.0, 9.0, 13, dtype=np.float32),
    6: np.linspace(27.0, 33.0, 13, dtype=np.float32),
    8: np.array([126.5, 127.5, 128.0], np.float32),
}
# Width of the asymmetric grid over the width of the block's values.
WIDTHS = np.linspace(0.76, 1.04, 8, dtype=np.float32)
_COARSE = np.float32(16)  # steps in a scale, beside an outlier: the next one is another scale
_TINY = np.float32(1e-30)  # smaller blocks are zero: their scales cannot be inverted
_WHOLE = np.float32(1.5 * 2**23)  # floats around it are whole numbers: what is added gets rounded


@compiled
def find_scales(
    values: Floats,
    importance: Floats | None,
    block: int,
    top: float,
    grids: Floats,
    with_zeros: bool,
    scales: Floats,
    zeros: NDArray[np.uint8],
) -> None:
    """The best scale of every block, and its zero point.

    Args:
        values: flat rows; a multiple of `LANES` blocks.
        importance: of each column; without it all count alike, in a loop of its own.
        block: values with one scale; 16, 32 or 64.
        top: highest code.
        grids: `SYMMETRIC_REACH` or, `with_zeros`, `WIDTHS`.
        with_zeros: choose zero points; otherwise they are half of `top`, rounded up.
        scales: receives them, one for each block.
        zeros: receives zero points.
    """
    x = np.empty((block, LANES), np.float32)
    flat = x.reshape(-1)
    w = np.ones((block, LANES), np.float32)
    unit, high, low, inverse, zero = np.empty((5, LANES), np.float32)
    fit, size, best, scale, kept = np.empty((5, LANES), np.float32)
    bottom, above = np.empty((2, LANES), np.float32)
    middle, last = np.float32((top + 1) / 2), np.float32(top)
    for first in range(0, scales.size, LANES):
        for i in range(0, block, TILE):
            for lane in range(0, LANES, TILE):
                start = (first + lane) * block + i
                transpose_tile(values, start, block, flat, i * LANES + lane, LANES)
        if importance is not None:
            for lane in range(LANES):
                at = (first + lane) * block % importance.size
                for i in range(block):
                    w[i, lane] = importance[at + i]
        for lane in range(LANES):
            high[lane], low[lane] = 0, 0
            best[lane], scale[lane], kept[lane] = 0, 0, middle
        for i in range(0, block, 4):
            for lane in range(LANES):
                largest, smallest = high[lane], low[lane]
                for j in range(4):
                    value = x[i + j, lane]
                    largest = value if value > largest else largest
                    smallest = value if value < smallest else smallest
                high[lane], low[lane] = largest, smallest
        for lane in range(LANES):
            unit[lane] = max(high[lane], -low[lane])
            share = np.float32(1) / unit[lane] if unit[lane] > _TINY else np.float32(0)
            high[lane], low[lane], inverse[lane] = high[lane] * share, low[lane] * share, share
        for i in range(0, block, 4):
            for lane in range(LANES):
                for j in range(4):
                    x[i + j, lane] *= inverse[lane]
        for grid in grids:
            for lane in range(LANES):
                if with_zeros:
                    width = (high[lane] - low[lane]) * grid
                    inverse[lane] = last / width
                    centre = np.float32(0.5) * (high[lane] + low[lane])
                    place = np.rint(np.float32(0.5) * last - centre * inverse[lane])
                    zero[lane] = min(max(place, np.float32(0)), last)
                else:
                    width = max(high[lane], -low[lane])
                    # The long side of the grid, below the zero point, is for the larger end.
                    inverse[lane] = (-grid if high[lane] >= -low[lane] else grid) / width
                    zero[lane] = middle
                if width == 0:
                    inverse[lane], zero[lane] = 0, middle
                fit[lane], size[lane] = 0, 0
                bottom[lane] = _WHOLE - zero[lane]
                above[lane] = _WHOLE + (last - zero[lane])
            for i in range(0, block, 8):
                for lane in range(LANES):
                    products, squares = np.float32(0), np.float32(0)
                    for j in range(8):
                        rounded = fma(x[i + j, lane], inverse[lane], _WHOLE)
                        rounded = rounded if rounded > bottom[lane] else bottom[lane]
                        rounded = rounded if rounded < above[lane] else above[lane]
                        code = rounded - _WHOLE
                        weighted = code if importance is None else w[i + j, lane] * code
                        products = fma(weighted, x[i + j, lane], products)
                        squares = fma(weighted, code, squares)
                    fit[lane] += products
                    size[lane] += squares
            for lane in range(LANES):
                if fit[lane] * fit[lane] > best[lane] * size[lane]:
                    best[lane] = fit[lane] * fit[lane] / size[lane]
                    scale[lane] = fit[lane] / size[lane] * unit[lane]
                    kept[lane] = zero[lane]
        for lane in range(LANES):
            scales[first + lane] = scale[lane]
            zeros[first + lane] = np.uint8(np.int32(kept[lane]))


@compiled
def encode_blocks(
    values: Floats,
    importance: Floats | None,
    blocks: int,
    top: float,
    steps: Floats,
    wanted: Floats,
    zeros: NDArray[np.uint8],
    both_ways: bool,
    scales: NDArray[np.int8],
    codes: NDArray[np.uint8],
) -> None:
    """Round the wanted scales to steps of their rows, and encode.

    Args:
        values: flat rows.
        importance: of each column, or None.
        blocks: of a row; a block has a multiple of 16 values.
        top: highest code.
        steps: of each row; 0 where all its values are zero.
        wanted: scale of each block.
        zeros: zero point of each block.
        both_ways: try the step below and the one above, and keep the one that loses less;
            otherwise the nearest is taken, but where a scale has only a few steps.
        scales: receives the rounded scales, in steps.
        codes: receives one byte for each value.
    """
    block = values.size // scales.size
    last = np.float32(top)
    errors = np.empty(block, np.float32)
    for index in range(scales.size):
        start = index * block
        source, target = values[start : start + block], codes[start : start + block]
        if importance is not None:
            weight = importance[start % importance.size : start % importance.size + block]
        step = steps[index // blocks]
        zero = np.float32(zeros[index])
        bottom, above = -zero, last - zero
        exact = wanted[index] / step if step > 0 else np.float32(0)
        chosen, least = np.rint(exact), np.float32(np.inf)
        if both_ways or abs(exact) < _COARSE:
            for side in range(2):
                scale = np.floor(exact) if side == 0 else np.ceil(exact)
                if scale == 0 or abs(scale) > MAX_SCALE:
                    continue
                inverse = np.float32(1) / (step * scale)
                for i in range(block):
                    exactly = source[i] * inverse
                    code = np.rint(exactly)
                    code = code if code > bottom else bottom
                    code = code if code < above else above
                    off = exactly - code
                    errors[i] = off * off if importance is None else weight[i] * off * off
                half = block // 2
                while half > 8:
                    for i in range(half):
                        errors[i] += errors[i + half]
                    half //= 2
                for i in range(8):  # of a known length, so that no loop is left of it
                    errors[i] += errors[i + 8]
                for i in range(4):
                    errors[i] += errors[i + 4]
                total = (errors[0] + errors[2]) + (errors[1] + errors[3])
                error = total * scale * scale
                if error < least:
                    least, chosen = error, scale
        chosen = min(max(chosen, np.float32(-MAX_SCALE)), np.float32(MAX_SCALE))
        scales[index] = np.int8(chosen)
        inverse = np.float32(1) / (step * chosen) if chosen != 0 else np.float32(0)
        for i in range(block):
            code = np.rint(source[i] * inverse)
            code = code if code > bottom else bottom
            code = code if code < above else above
            target[i] = np.uint8(np.int32(code + zero))

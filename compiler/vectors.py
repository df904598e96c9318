"""What processors do and numba has no name for, as LLVM's instructions.

All give the same bits on every machine: a fused product and sum is rounded once, by definition, and
where a processor has none the C library's is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

TILE = 8
_Generated = tuple[Any, Callable[..., Any]]
_instruction: Callable[[Callable[..., _Generated]], Any] = intrinsic


@_instruction
def fma(context: Any, a: Any, b: Any, c: Any) -> _Generated:
    """`a * b + c` in float32, rounded once."""
    signature = types.float32(types.float32, types.float32, types.float32)

    def generate(target: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        return builder.fma(*values)

    return signature, generate


@_instruction
def transpose_tile(
    context: Any, source: Any, start: Any, step: Any, target: Any, to: Any, stride: Any
) -> _Generated:
    """Copy a `[TILE, TILE]` part of one flat array into another of its type, transposed.

    Value by value this takes as long as trying four grids; nothing checks the bounds.

    Args:
        context: numba's.
        source: read from `start` on, rows `step` apart.
        start: place of the first value.
        step: from one row to the next.
        target: written from `to` on, rows `stride` apart.
        to: place of the first value.
        stride: from one row to the next.
    """
    places = types.intp, types.intp
    signature = types.void(source, *places, target, *places)
    return signature, _generate_tile


@_instruction
def widen_sixteen(context: Any, halves: Any, start: Any, floats: Any, to: Any) -> _Generated:
    """Sixteen float16 values, as uint16 in a flat array, to float32 in another; exact."""
    signature = types.void(halves, types.intp, floats, types.intp)
    return signature, _generate_widening


def _generate_widening(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
    def place(argument: int, item: Any) -> Any:
        array = context.make_array(signature.args[argument])(context, builder, values[argument])
        at = builder.gep(array.data, [values[argument + 1]])
        return builder.bitcast(at, ir.VectorType(item, 16).as_pointer())

    narrow = builder.load(place(0, ir.HalfType()), align=2)
    wide = builder.fpext(narrow, ir.VectorType(ir.FloatType(), 16))
    builder.store(wide, place(2, ir.FloatType()), align=4)
    return context.get_dummy_value()


def _generate_tile(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
    item = context.get_data_type(signature.args[0].dtype)
    kind, align = ir.VectorType(item, TILE), context.get_abi_sizeof(item)

    def rows_at(argument: int) -> list[Any]:
        array = context.make_array(signature.args[argument])(context, builder, values[argument])
        first, step = values[argument + 1 : argument + 3]
        places = [builder.add(first, builder.mul(step, step.type(i))) for i in range(TILE)]
        return [
            builder.bitcast(builder.gep(array.data, [place]), kind.as_pointer()) for place in places
        ]

    rows = [builder.load(row, align=align) for row in rows_at(0)]
    for bit in (4, 2, 1):  # of a place: swapped between rows and columns
        for i in range(TILE):
            if not i & bit:
                one, other = rows[i], rows[i | bit]
                low = [TILE + j - bit if j & bit else j for j in range(TILE)]
                high = [TILE + j if j & bit else j + bit for j in range(TILE)]
                rows[i], rows[i | bit] = (
                    builder.shuffle_vector(one, other, ir.VectorType(ir.IntType(32), TILE)(mask))
                    for mask in (low, high)
                )
    for value, place in zip(rows, rows_at(3), strict=True):
        builder.store(value, place, align=align)
    return context.get_dummy_value()

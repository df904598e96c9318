"""What a unit's blob is made of, and the pieces that fill it.

    Recipe ── layout ──► names, types and shapes of the blob's tensors
           ── pieces ──► values, about a MiB of the checkpoint at a time

Matrices that one product reads lie row behind row as one tensor; so do the biases behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgeshard.compiler.blob import Layout, Piece
from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.encoding import (
    GGUF_BLOCK,
    STORED,
    Array,
    Encoding,
    Floats,
    block_encoding,
    import_gguf,
    quantise,
)
from edgeshard.compiler.lowering import FLOATS, joined_name
from edgeshard.compiler.stored import HALVES, is_finite, widen
from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType


@dataclass(frozen=True)
class Product:
    """Matrices `[rows, columns]` of one encoding; `names` are without the unit's prefix."""

    names: tuple[str, ...]
    encoding: Encoding


@dataclass(frozen=True)
class Recipe:
    """The weights of one unit.

    Attributes:
        unit: such as `block.7`.
        prefix: of all names in the checkpoint, such as `layers.7.`.
        vectors: groups of vectors; each group becomes one.
        floats: the type that floats lie in, that which the model computes in.
        calibration: says which columns count more.
        plus_one: norms that scale by 1 + weight; the sum is what is written.
    """

    unit: str
    prefix: str
    products: tuple[Product, ...]
    vectors: tuple[tuple[str, ...], ...] = ()
    floats: FloatType = "float32"
    calibration: Calibration = field(default_factory=Calibration)
    plus_one: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Full names of the checkpoint's tensors that go into the blob."""
        groups = (*(product.names for product in self.products), *self.vectors)
        return tuple(self.prefix + name for names in groups for name in names)


def layout_of(recipe: Recipe, checkpoint: Checkpoint) -> Layout:
    """Types and shapes of the blob's tensors: matrices first, then vectors."""
    layout: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {}
    float_type = FLOATS[recipe.floats][1]
    for product in recipe.products:
        shapes = [checkpoint.shape(recipe.prefix + name) for name in product.names]
        parts = product.encoding.parts(sum(shape[0] for shape in shapes), shapes[0][1])
        for part, (kind, shape) in parts.items():
            # A row's scale stays as it is: DequantizeLinear takes no other before opset 19. So does
            # a row's step, which may be too small for 16 bits.
            kept = product.encoding.kind == "rows" or part == "steps" or kind != np.float32
            layout[f"{joined_name(product.names)}.{part}"] = (kind if kept else float_type, shape)
    for names in recipe.vectors:
        size = sum(checkpoint.shape(recipe.prefix + name)[0] for name in names)
        layout[joined_name(names)] = (float_type, (size,))
    return layout


def pieces(
    recipe: Recipe, checkpoint: Checkpoint, on_values: Callable[[int], None]
) -> Iterator[Piece]:
    """The values of a recipe's tensors, a piece at a time.

    Args:
        recipe: what to encode.
        checkpoint: where it comes from.
        on_values: told how many more values of the checkpoint are behind.

    Raises:
        InputError: a tensor holds NaN, infinity or more than the type of floats can, or cannot be
            read.
    """
    layout = layout_of(recipe, checkpoint)
    for piece in _float32_pieces(recipe, checkpoint, on_values):
        yield _cast(piece, layout[piece.tensor][0], checkpoint)


def compile_loops(calibration: Calibration) -> None:
    """Have numba compile what quantises weights, before there are any: it takes seconds.

    Args:
        calibration: says whether columns count differently, which is another loop.
    """
    encoding = block_encoding(4, GGUF_BLOCK)
    rows = np.zeros((1, 2 * GGUF_BLOCK), np.uint8)
    values = widen(rows, "F16")
    for floats in (values, rows.view(np.float16)):
        is_finite(floats)
    quantise(values, encoding)
    if calibration.importance:
        quantise(values, encoding, np.ones(GGUF_BLOCK, np.float32))


def _float32_pieces(
    recipe: Recipe, checkpoint: Checkpoint, on_values: Callable[[int], None]
) -> Iterator[Piece]:
    for product in recipe.products:
        yield from _product(product, recipe, checkpoint, on_values)
    for names in recipe.vectors:
        start = 0
        for name in names:
            values = checkpoint.floats(recipe.prefix + name)
            _check_finite(checkpoint, recipe.prefix + name, values)
            if name in recipe.plus_one:
                values = values + np.float32(1)
            yield Piece(joined_name(names), start, values)
            start += values.size
            on_values(values.size)


def _product(
    product: Product, recipe: Recipe, checkpoint: Checkpoint, on_values: Callable[[int], None]
) -> Iterator[Piece]:
    label, row = joined_name(product.names), 0
    offsets: list[Array] = []
    for name in product.names:
        weight = recipe.prefix + name
        importance = recipe.calibration.importance.get(weight)
        moved = recipe.calibration.moved.get(weight)
        columns = checkpoint.shape(weight)[1]
        for rows in checkpoint.pieces(weight):
            parts = _encode(checkpoint, weight, rows, product.encoding, importance, moved)
            for part, values in parts.items():
                if part == "offsets":  # [K/block, N]: rows of the matrix are columns here
                    offsets.append(values)
                else:
                    yield Piece(f"{label}.{part}", row * (values.size // len(values)), values)
            row += rows.shape[0]
            on_values(rows.shape[0] * columns)
    if offsets:
        yield Piece(f"{label}.offsets", 0, np.concatenate(offsets, axis=1))


def _encode(
    checkpoint: Checkpoint,
    weight: str,
    rows: Array,
    encoding: Encoding,
    importance: Floats | None,
    moved: Floats | None,
) -> dict[str, Array]:
    stored = checkpoint.stored_type(weight)
    if STORED.get(stored) == encoding:
        parts = import_gguf(np.asarray(rows, np.uint8), stored)
        _check_finite(checkpoint, weight, *(parts[name] for name in parts if name != "codes"))
        return parts
    raw = np.asarray(rows, np.uint8)
    values = widen(raw, stored)
    # Looked at as they are where that is half of the bytes.
    _check_finite(checkpoint, weight, raw.view(HALVES[stored]) if stored in HALVES else values)
    return quantise(values, encoding, importance, moved)


def _cast(piece: Piece, kind: type[np.generic], checkpoint: Checkpoint) -> Piece:
    values = piece.values
    if values.dtype.type == kind:
        return piece
    largest = np.abs(values).max()
    if kind == np.float16 and largest > np.finfo(np.float16).max:
        raise InputError(
            f"tensor {piece.tensor} of {checkpoint.path} has {largest:.3g}, more than float16 "
            "holds; compile with --precision bf16 or fp32"
        )
    return Piece(piece.tensor, piece.start, values.astype(kind))


def _check_finite(checkpoint: Checkpoint, weight: str, *values: Array) -> None:
    if not all(is_finite(array) for array in values):
        raise InputError(f"tensor {weight} of {checkpoint.path} holds NaN or infinity")

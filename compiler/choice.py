"""How each matrix is to lie in the store: as stored where the bits agree, else converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.encoding import FLOAT, ROWS, STORED, Encoding, block_encoding
from edgeshard.compiler.lowering import precision_bits
from edgeshard.compiler.mixture import fill, mix
from edgeshard.errors import InputError
from edgeshard.schemas.common import Precision, Target

INT4_BITS = 4.5  # of a parameter in int4, unless said: as many as in llama.cpp's Q4_0
QUANTISED_AS_BYTES = "Q"  # GGUF's block types all start so; those we cannot import become int8


@dataclass(frozen=True)
class Wish:
    """What a model is to be: `bits` belong to `int4` and `mixed`, which have a default each."""

    precision: Precision
    target: Target
    bits: float | None
    calibration: Calibration

    @property
    def is_quantised(self) -> bool:
        """Whether weights are quantised here, and by the loops of `scale_search.py`."""
        return self.precision in ("int8", "int4", "mixed") and self.target != "tensorrt"


def choose_encodings(
    checkpoint: Checkpoint, wish: Wish, notice: Callable[[str], None]
) -> dict[str, Encoding]:
    """Choose the encodings of all matrices; whether a model has use for them is seen later.

    Raises:
        InputError: `bits` are out of reach or asked of a precision that has none to choose.
    """
    if wish.precision not in ("int4", "mixed") and wish.bits is not None:
        raise InputError(
            f"--bits {wish.bits:g} is for --precision int4 or mixed, not {wish.precision}; leave "
            "it out"
        )
    shapes = {name: checkpoint.shape(name) for name in sorted(checkpoint.names())}
    matrices = [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and min(shape) > 0 and name.endswith(".weight")
    ]
    stored = {weight: checkpoint.stored_type(weight) for weight in matrices}
    if wish.precision == "mixed":
        for kind in sorted(set(stored.values())):
            if kind.startswith(QUANTISED_AS_BYTES):
                notice(f"{kind} tensors are requantised to 4, 6 and 8 bits")
        return mix(checkpoint, matrices, wish.bits, wish.calibration)
    chosen = {
        weight: choose_encoding(
            weight,
            stored[weight],
            checkpoint.shape(weight)[1],
            wish.precision,
            wish.target,
            notice,
        )
        for weight in matrices
    }
    if wish.precision == "int4":
        bits, is_asked = wish.bits or INT4_BITS, wish.bits is not None
        return fill(checkpoint, chosen, bits, wish.calibration, is_asked=is_asked)
    return chosen


def choose_encoding(
    weight: str,
    stored: str,
    columns: int,
    precision: Precision,
    target: Target,
    notice: Callable[[str], None],
) -> Encoding:
    """Choose the encoding of a matrix.

    Args:
        weight: its name.
        stored: its type in the checkpoint.
        columns: length of its rows.
        precision: of the model.
        target: whose operators read it.
        notice: told what a person should know.
    """
    encoding = STORED.get(stored)
    if precision in ("fp32", "fp16", "bf16"):
        return FLOAT
    if precision == "stored":
        if encoding is not None:
            return encoding
        if not stored.startswith(QUANTISED_AS_BYTES):
            return FLOAT
        notice(f"{stored} tensors are converted to int8")
        return block_encoding(8, columns)
    bits = precision_bits(precision)
    if target == "tensorrt":
        return FLOAT if weight == "embed_tokens.weight" else ROWS
    if encoding is not None and encoding.bits == bits and encoding.kind == "blocks":
        return encoding
    if stored.startswith(QUANTISED_AS_BYTES):
        notice(f"{stored} tensors are requantised to {precision}")
    chosen = block_encoding(bits, columns)
    if chosen == FLOAT:
        notice(f"rows of {columns} are no multiple of 16 and stay fp32")
    return chosen

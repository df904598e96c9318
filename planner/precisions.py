"""One checkpoint compiled at several precisions: which of them a stage may have.

    int4, mixed, stored  <  int8  <  fp16, bf16  <  fp32

`mixed` has matrices in 4 bits, and `stored` whatever the checkpoint has, so neither is above int4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from edgeshard.errors import InputError
from edgeshard.schemas.common import Floor, Precision
from edgeshard.schemas.model import ModelManifest

RANKS: dict[Precision, int] = {
    "stored": 0,
    "mixed": 0,
    "int4": 0,
    "int8": 1,
    "bf16": 2,
    "fp16": 2,
    "fp32": 3,
}

Name = TypeVar("Name")
Named = tuple[ModelManifest, Name]


def allowed(models: Sequence[Named[Name]], floor: Floor | None) -> tuple[Named[Name], ...]:
    """The models that a floor leaves, the highest precision first, so that it wins a tie.

    Args:
        models: one checkpoint at each of its precisions, with what names each.
        floor: the lowest precision of a stage; None: any.

    Raises:
        InputError: they are not of one checkpoint, or none is left.
    """
    check_same([model for model, _ in models])
    least = 0 if floor is None else RANKS[floor]
    kept = [one for one in models if RANKS[one[0].precision] >= least]
    if not kept:
        have = ", ".join(f"{model.name} ({model.precision})" for model, _ in models)
        raise InputError(
            f"no model has at least precision {floor}: {have}; "
            f"compile with --precision {floor} or lower --min-precision"
        )
    return tuple(sorted(kept, key=lambda one: -RANKS[one[0].precision]))


def check_same(models: Iterable[ModelManifest]) -> None:
    """Refuse models that do not compute the same.

    Raises:
        InputError: names two of them and what differs.
    """
    first, *others = models
    for other in others:
        for what in ("source", "num_blocks", "hidden_size", "vocab_size"):
            one, two = getattr(first, what), getattr(other, what)
            if one != two:
                text = f"{one.digest} and {two.digest}" if what == "source" else f"{one} and {two}"
                raise InputError(
                    f"{other.name} is not {first.name} at another precision: {what} differs "
                    f"({text}); compile both from the same checkpoint"
                )

"""What slots hold of a new prompt: those of requests that are over, and of some that are not.

    slot 2   "You are a helpful …" + "What is …?" + "It is …"     over
    slot 3   "You are a helpful …" + "Where …"                    its prompt is being computed
    new      "You are a helpful …" + "Who was …?"                 computes from "Who" on

Rule: an answer never depends on what was asked before. Only what prompt chunks wrote is taken, up
to an even position: any cut of a prompt at even positions gives the same bits, a decode step gives
others. Who asks for answers to be reused takes those too, and is told so. And one client never
meets another's prompt, unless the operator allows it: the time to a first token would tell of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_TOKENS = 16  # fewer are computed again: that takes no longer
# Computed in any case: the first answer needs the last token's logits, and a chunk of one token
# would give other bits.
FRESH_TOKENS = 2


@dataclass(frozen=True)
class Held:
    """What a slot holds of a request, or will.

    Attributes:
        text: its tokens, those of the answer behind the prompt's.
        num_exact: of them, that prompt chunks alone wrote.
        num_written: of them, that are on every stage or on their way there.
    """

    request: int
    client: str
    text: tuple[int, ...]
    num_exact: int
    num_written: int


@dataclass(frozen=True)
class Start:
    """How a prompt may start with what a slot holds.

    Attributes:
        length: positions to be taken once all is written; even.
        num_ready: of them, that can be taken now; even.
        num_exact: of the text, that prompt chunks alone wrote.
        is_all: the slot holds nothing else that is worth keeping.
    """

    slot: int
    request: int
    length: int
    num_ready: int
    num_exact: int
    is_all: bool


def start_of(prompt: tuple[int, ...], slot: int, held: Held, reuse_answers: bool) -> Start | None:
    """How a prompt may start with what a slot holds; None where that is not worth it.

    Args:
        prompt: token ids.
        slot: that holds something.
        held: what it holds; whether its client may be met is for the caller to know.
        reuse_answers: whether what decode steps wrote is taken too.
    """
    if held.text[:MIN_TOKENS] != prompt[:MIN_TOKENS]:
        return None
    shared = num_shared(prompt, held.text)
    usable = shared if reuse_answers else min(shared, held.num_exact)
    length = _even(min(usable, len(prompt) - FRESH_TOKENS))
    if length < MIN_TOKENS:
        return None
    ready = _even(min(length, held.num_written))
    is_all = shared >= held.num_exact
    return Start(slot, held.request, length, ready, held.num_exact, is_all)


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the start that two texts have in common, found by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _even(length: int) -> int:
    return length - length % 2

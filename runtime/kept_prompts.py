"""The prompts that free slots still hold on every stage, for requests that start with the same.

    slot 2   "You are a helpful …" + "What is …?"      kept after its answer
    new      "You are a helpful …" + "Who was …?"      takes slot 2 and computes from "Who" on

Rule: an answer never depends on what was asked before. Only what prompt chunks wrote is kept: any
cut of a prompt into chunks of two tokens or more gives the same bits, a decode step gives others.
And one client never meets another's prompt: the time to a first token would tell them of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeshard.runtime.wire import Kept

MIN_TOKENS = 16  # fewer are computed again: that takes no longer
# Computed in any case: the first answer needs the last token's logits, and a chunk of one token
# would give other bits.
FRESH_TOKENS = 2


@dataclass(frozen=True)
class _Prompt:
    request: int
    client: str
    tokens: tuple[int, ...]


class KeptPrompts:
    """What each free slot holds."""

    def __init__(self) -> None:
        self._prompts: dict[int, _Prompt] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._prompts

    def keep(self, slot: int, request: int, client: str, tokens: tuple[int, ...]) -> None:
        """A request is over whose prompt, or so much of it, lies in its slot."""
        if len(tokens) >= MIN_TOKENS:
            self._prompts[slot] = _Prompt(request, client, tokens)

    def drop(self, slot: int) -> None:
        """The slot is taken, or no longer to be trusted."""
        self._prompts.pop(slot, None)

    def clear(self) -> None:
        """Nothing is held any more."""
        self._prompts.clear()

    def match(self, client: str, prompt: tuple[int, ...]) -> tuple[int, Kept] | None:
        """The slot that holds most of a prompt, and what it holds of it."""
        best: tuple[int, Kept] | None = None
        for slot, held in self._prompts.items():
            if held.client == client:
                length = min(num_shared(prompt, held.tokens), len(prompt) - FRESH_TOKENS)
                if length >= MIN_TOKENS and (best is None or length > best[1].length):
                    best = slot, Kept(held.request, slot, length)
        return best


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

"""When a prompt's next chunk may go while others decode: the pace of prompts beside them.

    steps    T  T  T … T  T T T T T  T  T …
    chunks    C  C  C … C             C  C …
              a run of 16   a rest

Rule: a chunk leaves right behind a step of each group that decodes, so that no token waits for more
than one of them at a stage; docs/adr/0032.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from edgeshard.runtime.schedule_limits import RUN_CHUNKS, Limits


class Pace:
    """Counts the steps of each group since the last chunk, and chunks."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._steps: Counter[int] = Counter()
        self._num_chunks = 0

    def note_step(self, group: int) -> None:
        """A group has sent a step."""
        self._steps[group] += 1

    def note_chunk(self, decoding: Set[int]) -> None:
        """A chunk was sent beside these groups."""
        self._steps.clear()
        self._num_chunks += bool(decoding)

    def allows(self, decoding: Set[int]) -> bool:
        """Whether a chunk may go now, beside the groups that decode."""
        is_rest = self._num_chunks and self._num_chunks % RUN_CHUNKS == 0
        rest = self._limits.beside_steps if is_rest else 0
        return all(self._steps[group] > rest for group in decoding)

    def chunk_tokens(self, decoding: Set[int]) -> int:
        """Positions of a chunk at most, beside the groups that decode."""
        most = self._limits.chunk_tokens
        return min(most, self._limits.beside_tokens) if decoding else most

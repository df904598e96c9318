"""What a stage and the coordinator count, and how it reaches their agent: lines of `child.py`.

Rule: counts, sizes and times. Nothing of a prompt, an answer, a token or a key is counted or named.
Counts begin at 0 with the process; whoever adds them up over restarts knows counters that reset.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

STEP_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
WAIT_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TELL_SECONDS = 1.0


class Distribution(msgspec.Struct, frozen=True):
    """Seconds, counted by size.

    Attributes:
        bounds: upper bounds, ascending, each within its bucket.
        counts: of each bucket alone, and behind them of what is longer than all.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total_seconds: float


class Histogram:
    """A distribution that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class StageFigures(msgspec.Struct, frozen=True, kw_only=True, tag="stage"):
    """What a stage counted.

    Attributes:
        step_seconds: of computing, a step each.
        positions: of all steps, times their rows.
        received_bytes, sent_bytes: headers and payloads on the data hops, without encryption.
        in_flight_bytes: sent to the next hop and not acknowledged, of `credit_bytes`.
        blocked_seconds: that the stage could not send, and took nothing.
        refused: messages that were not applied, by why.
        kv_bytes: what open requests hold of `kv_capacity_bytes`.
    """

    index: int
    step_seconds: Distribution
    positions: int
    received_bytes: int
    sent_bytes: int
    in_flight_bytes: int
    credit_bytes: int
    blocked_seconds: float
    refused: dict[str, int]
    open_slots: int
    slots: int
    kv_bytes: int
    kv_capacity_bytes: int


class CoordinatorFigures(msgspec.Struct, frozen=True, kw_only=True, tag="coordinator"):
    """What the coordinator counted.

    Attributes:
        is_up: the chain takes requests.
        requests: that are over, by how: stop, length, cancelled, failed, refused.
        refusals: requests that never got a slot, by the kind of error that they ended with.
        kept_tokens: of prompts, that were not computed again.
        first_token_seconds: from taking a request to its first token, waiting included.
        token_seconds: from each token of a request to its next.
        blocked_seconds: that stage 0 took nothing, and no step was started.
    """

    is_up: bool
    requests: dict[str, int]
    refusals: dict[str, int]
    tokens: int
    prompt_tokens: int
    kept_tokens: int
    running: int
    waiting: int
    slots: int
    steps_in_flight: int
    blocked_seconds: float
    first_token_seconds: Distribution
    token_seconds: Distribution


Figures = StageFigures | CoordinatorFigures


class StageCounts:
    """A stage's counts while it runs."""

    def __init__(self) -> None:
        self.step_seconds = Histogram(STEP_BOUNDS)
        self.positions = 0
        self.received_bytes = 0


class Due:
    """Says when to tell again; about once a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def at(self, now: float) -> bool:
        """Whether it is time."""
        if now < self._next:
            return False
        self._next = now + TELL_SECONDS
        return True

"""Counts requests and tokens from what the schedule is told and wants done. No socket, no clock.

Rule: each request is counted once, by how it ended; one that never got a slot and failed was
refused. What the desk refuses never becomes one of the schedule's; it is counted here all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.figures import STEP_BOUNDS as TOKEN_BOUNDS
from edgeshard.runtime.figures import WAIT_BOUNDS, CoordinatorFigures, Histogram
from edgeshard.runtime.schedule import Schedule


class RequestCounts:
    """The requests of a coordinator."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._tokens = 0
        self._prompt_tokens = 0
        self._kept_tokens = 0
        self._first_token = Histogram(WAIT_BOUNDS)
        self._token = Histogram(TOKEN_BOUNDS)
        self._last: dict[int, float] = {}  # of each live request: submitted, or its last token
        self._opened: set[int] = set()

    def note(
        self,
        event: events.ScheduleEvent,
        instructions: Sequence[events.ScheduleInstruction],
        now: float,
    ) -> None:
        """Count what an event brought about."""
        if isinstance(event, events.Submit):
            self._last[event.request] = now
            self._prompt_tokens += len(event.prompt)
        for one in instructions:
            match one:
                case events.SendOpen():
                    self._opened.add(one.request)
                case events.Emit():
                    self._tokens += 1
                    waited = now - self._last.get(one.request, now)
                    (self._token if one.index else self._first_token).add(waited)
                    self._last[one.request] = now
                case events.Finish():
                    self._kept_tokens += one.num_kept
                    self._end(one.request, one.reason)
                case events.Fail():
                    if one.request in self._opened:
                        self._end(one.request, "failed")
                    else:
                        self._end(one.request, "refused")
                        self._refusals[one.kind] += 1

    def refuse(self, kind: str) -> None:
        """Count a request that is none for the schedule.

        Args:
            kind: name of the error's class.
        """
        self._requests["refused"] += 1
        self._refusals[kind] += 1

    def _end(self, request: int, outcome: str) -> None:
        self._requests[outcome] += 1
        self._last.pop(request, None)
        self._opened.discard(request)

    def read(self, schedule: Schedule, blocked_seconds: float = 0.0) -> CoordinatorFigures:
        """What was counted so far, and how the schedule is now."""
        return CoordinatorFigures(
            is_up=schedule.failed is None,
            requests=dict(self._requests),
            refusals=dict(self._refusals),
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
            kept_tokens=self._kept_tokens,
            running=schedule.num_running,
            waiting=schedule.num_waiting,
            slots=schedule.limits.slots,
            steps_in_flight=len(schedule.in_flight()),
            blocked_seconds=blocked_seconds,
            first_token_seconds=self._first_token.read(),
            token_seconds=self._token.read(),
        )

"""Times in lanes as a Chrome trace, for chrome://tracing and Perfetto.

Rule: one lane never shows two things at once, which viewers cannot draw: what overlaps goes into a
second lane of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MICRO = 1e6
ROUNDING_SECONDS = 1e-9


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that took from `start` to `stop` seconds in a lane."""

    lane: str
    name: str
    kind: str
    start: float
    stop: float
    args: Mapping[str, object] = field(default_factory=dict)


def chrome_trace(lanes: Sequence[str], slices: Iterable[Slice]) -> dict[str, object]:
    """In Chrome's trace event format: complete events in microseconds, named threads.

    Args:
        lanes: in the order in which they are shown.
        slices: in any order; each in one of the lanes.
    """
    rows: dict[str, list[float]] = {lane: [] for lane in lanes}  # where each ends
    placed: list[tuple[str, int, Slice]] = []
    for one in sorted(slices, key=lambda one: (one.start, one.stop)):
        ends = rows[one.lane]
        row = next((i for i, end in enumerate(ends) if end <= one.start + ROUNDING_SECONDS), None)
        if row is None:
            row = len(ends)
            ends.append(0.0)
        ends[row] = one.stop
        placed.append((one.lane, row, one))
    numbers = {
        place: index
        for index, place in enumerate(
            (lane, row) for lane, ends in rows.items() for row in range(max(1, len(ends)))
        )
    }
    events: list[dict[str, object]] = []
    for (lane, row), number in numbers.items():
        name = lane if row == 0 else f"{lane} ({row + 1})"
        events += [
            _meta("thread_name", number, {"name": name}),
            _meta("thread_sort_index", number, {"sort_index": number}),
        ]
    events += [
        {
            "ph": "X",
            "name": one.name,
            "cat": one.kind,
            "pid": 1,
            "tid": numbers[lane, row],
            "ts": one.start * MICRO,
            "dur": (one.stop - one.start) * MICRO,
            "args": dict(one.args),
        }
        for lane, row, one in placed
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _meta(name: str, lane: int, args: dict[str, object]) -> dict[str, object]:
    return {"ph": "M", "name": name, "pid": 1, "tid": lane, "args": args}

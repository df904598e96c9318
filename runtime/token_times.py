"""Where the time of each token went, from what the source and the stages noted. Pure.

    source  ┤returned … sent├                                                        ┤returned
    hop                     ├ wait ┤ hop ├                          ├ hop ┤   …  ├hop┤
    stage                                ├ read ┤ compute ┤ write ├
                            sent  free  taken  started  computed written

Rules:
- A stage's durations are read from its own clock, so no other clock bends them.
- A hop lies between two clocks. How far a device's clock is off is the middle of the quickest ping
  (`tracing.py`), moved as little as needed so that no message of the trace arrives before it left.
- Whatever the offsets are, they cancel around the chain: the parts of a token add up to the time
  from the last token's return to its own, exactly. A wrong offset moves time from one hop of a
  device to its other, and can neither make nor lose any.
- The part of a hop in which the receiver was still at other work is a wait, not the hop's.
- Packing and unpacking headers, a few microseconds, is in the hop.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeshard.errors import LinkError
from edgeshard.runtime.ask import Timed
from edgeshard.runtime.exchange import Trace
from edgeshard.runtime.wire import Marks

SOURCE = "source"
Kind = Literal["source", "wait", "hop", "read", "compute", "write"]
ROUNDING_SECONDS = 1e-6  # of clocks that may count from long ago


@dataclass(frozen=True, slots=True)
class Part:
    """A time of a step; `where` is the source, a device, or a hop `a -> b`.

    Attributes:
        start, stop: seconds since the request's first step left the source.
    """

    where: str
    kind: Kind
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step, its parts in the order of time and without gaps.

    Attributes:
        num_tokens: positions that it ran.
        is_decode: it carried a new token; its parts begin when the last one was back.
    """

    number: int
    num_tokens: int
    is_decode: bool
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """From the first part's start to the last one's end."""
        return self.parts[-1].stop - self.parts[0].start


def token_times(trace: Trace) -> list[StepTimes]:
    """Place every step on the source's clock.

    Raises:
        LinkError: the times cannot be: a clock jumped, or a device reports nonsense.
    """
    steps, devices = trace.steps, [clock.device for clock in trace.clocks]
    for step in steps:
        _check(step, devices)
    offsets = clock_offsets(steps, [clock.offset_seconds for clock in trace.clocks])
    placed: list[StepTimes] = []
    returned: float | None = None
    zero = steps[0].sent if steps else 0.0
    for step in steps:
        parts = _parts(step, devices, offsets, zero)
        is_decode = returned is not None
        if returned is not None:
            parts = [Part(SOURCE, "source", returned - zero, step.sent - zero), *parts]
        if step.has_token:
            returned = step.returned
        placed.append(StepTimes(step.step, step.num_tokens, is_decode, tuple(parts)))
    return placed


def places(trace: Trace) -> list[str]:
    """The source, then each hop and device, in the order of the chain."""
    found = [SOURCE]
    for before, after in itertools.pairwise([SOURCE, *(one.device for one in trace.clocks)]):
        found += [f"{before} -> {after}", after]
    return [*found, f"{trace.clocks[-1].device} -> {SOURCE}"]


def clock_offsets(steps: Sequence[Timed], measured: Sequence[float | None]) -> list[float]:
    """How much more each stage's clock shows than the source's.

    `quickest[i]` is what hop `i` takes at least plus the offset behind it less the offset before
    it, so no offset may exceed the one before it by more than that, and the last one has to come
    back to the source's 0 in the same way. Within that the measured one is taken, and the middle
    where none was.

    Raises:
        LinkError: there is no such offset.
    """
    if not steps:
        return [0.0 if one is None else one for one in measured]
    quickest = [
        min(there - here for here, there in hops)
        for hops in zip(*(_crossings(step) for step in steps), strict=True)
    ]
    if sum(quickest) < -ROUNDING_SECONDS:
        raise LinkError(
            "the times of this trace cannot be: a message would have come back before it left; a "
            "clock jumped, or a device was suspended: trace again"
        )
    offsets: list[float] = []
    before = 0.0
    for index, offset in enumerate(measured):
        highest = before + quickest[index]
        lowest = min(-sum(quickest[index + 1 :]), highest)
        wanted = (lowest + highest) / 2 if offset is None else offset
        before = min(max(wanted, lowest), highest)
        offsets.append(before)
    return offsets


def _crossings(step: Timed) -> list[tuple[float, float]]:
    """For each hop when its message left, and when it was taken, each by the clock there."""
    left = [step.sent, *(marks.written for marks in step.marks)]
    taken = [*(marks.taken for marks in step.marks), step.returned]
    return list(zip(left, taken, strict=True))


def _check(step: Timed, devices: Sequence[str]) -> None:
    if len(step.marks) != len(devices):
        raise LinkError(
            f"step {step.step} has marks of {len(step.marks)} stages of {len(devices)}; trace again"
        )
    for index, marks in enumerate(step.marks):
        times = (marks.free, marks.taken, marks.started, marks.computed, marks.written)
        if list(times) != sorted(times):
            raise LinkError(
                f"stage {index} on {devices[index]} reports times that run backwards: {times}"
            )


def _parts(
    step: Timed, devices: Sequence[str], offsets: Sequence[float], zero: float
) -> list[Part]:
    """From the step's leaving the source to its return, by the source's clock less `zero`."""
    parts: list[Part] = []
    left, sender = step.sent - zero, SOURCE
    for device, marks, offset in zip(devices, step.marks, offsets, strict=True):
        local = _shifted(marks, offset + zero)
        parts += _hop(sender, device, left, local.free, max(local.taken, left))
        parts += [
            Part(device, "read", max(local.taken, left), local.started),
            Part(device, "compute", local.started, local.computed),
            Part(device, "write", local.computed, local.written),
        ]
        left, sender = local.written, device
    returned = max(step.returned - zero, left)
    return [*parts, *_hop(sender, SOURCE, left, step.free - zero, returned)]


def _hop(sender: str, receiver: str, left: float, free: float, taken: float) -> list[Part]:
    """The hop, behind what of it the receiver was busy."""
    ready = min(max(free, left), taken)
    where = f"{sender} -> {receiver}"
    return [Part(where, "wait", left, ready), Part(where, "hop", ready, taken)]


def _shifted(marks: Marks, seconds: float) -> Marks:
    return Marks(
        marks.free - seconds,
        marks.taken - seconds,
        marks.started - seconds,
        marks.computed - seconds,
        marks.written - seconds,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What one kind of part takes of a token at one place; low and high are the 10th and 90th %.

    Attributes:
        share: of all time of all tokens; the shares of a trace sum to 1.
    """

    where: str
    kind: Kind
    median_seconds: float
    low_seconds: float
    high_seconds: float
    share: float


def breakdown(steps: Sequence[StepTimes]) -> list[Share]:
    """Sum the decode steps up, in the order of the chain; empty where there are none."""
    by_part: defaultdict[tuple[str, Kind], list[float]] = defaultdict(list)
    for step in steps:
        for part in step.parts if step.is_decode else ():
            by_part[part.where, part.kind].append(part.seconds)
    total = sum(step.seconds for step in steps if step.is_decode)
    return [
        Share(where, kind, *spread(seconds), share=sum(seconds) / total)
        for (where, kind), seconds in by_part.items()
    ]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th per cent."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return statistics.median(ordered), ordered[last // 10], ordered[last - last // 10]

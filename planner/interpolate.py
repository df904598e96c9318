"""Read a time between and beyond the measured points.

    seconds
      │              ╭── beyond the last point: along the last segment, never falling
      │         ╭────╯
      │    ╭────╯   between two points: the straight line
      │────╯
      └────┴────┴────┴── context or tokens

Decode time has a part that no context removes, so below the first point it stays flat. Prefill
time goes down with the tokens, but never below the first point's own time per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeshard.schemas.profile import DecodePoint, PrefillPoint

Point = tuple[int, float]


def decode_seconds(points: Iterable[DecodePoint], context: int, batch: int = 1) -> float | None:
    """Seconds of one new token for each of `batch` sequences that hold `context` positions.

    Larger batches are measured at one context; they take as much longer at every other one.

    Args:
        points: what was measured.
        context: positions held before the token.
        batch: sequences of a step.

    Returns:
        The time, or None where no point of batch 1 was measured, or none of a larger one is needed.
    """
    known = tuple(points)
    line = _line((point.context, point.time.median_seconds) for point in known if point.batch == 1)
    if not line:
        return None
    alone = line[0][1] if context <= line[0][0] else _along(line, context)
    if batch == 1:
        return alone
    first = line[0][0]
    by_batch = _line((p.batch, p.time.median_seconds) for p in known if p.context == first)
    if len(by_batch) == 1 or not by_batch[0][1]:
        return None
    return alone * _along(by_batch, batch) / by_batch[0][1]


def prefill_seconds(points: Iterable[PrefillPoint], num_tokens: int) -> float | None:
    """Seconds of a prompt of `num_tokens` given whole to an empty sequence.

    Args:
        points: what was measured; only those without past positions count.
        num_tokens: length of the prompt.

    Returns:
        The time, or None where no point without past was measured.
    """
    empty = (point for point in points if point.past == 0)
    line = _line((point.num_tokens, point.time.median_seconds) for point in empty)
    if not line:
        return None
    first_tokens, first_seconds = line[0]
    share = first_seconds * num_tokens / first_tokens
    if len(line) == 1:
        return share
    along = _along(line, num_tokens)
    return max(along, share) if num_tokens < first_tokens else along


def _line(points: Iterable[Point]) -> list[Point]:
    """Points in order of place, the last one measured where a place repeats."""
    return sorted(dict(points).items())


def _along(line: Sequence[Point], place: int) -> float:
    if len(line) == 1:
        return line[0][1]
    stop = next((i for i in range(1, len(line)) if place <= line[i][0]), len(line) - 1)
    (left, left_seconds), (right, right_seconds) = line[stop - 1], line[stop]
    slope = (right_seconds - left_seconds) / (right - left)
    if place > right:
        return right_seconds + max(slope, 0.0) * (place - right)
    return left_seconds + slope * (place - left)

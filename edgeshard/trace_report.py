"""A traced request as a Chrome trace, as a table, and as JSON; see `runtime/token_times.py`.

Rule: a report has times, places and counts. Prompt, text and tokens are not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from edgeshard.chrome_trace import Slice, chrome_trace
from edgeshard.runtime.exchange import Result, Trace
from edgeshard.runtime.token_times import Share, StepTimes, breakdown, places, spread


def chrome(trace: Trace, steps: Sequence[StepTimes]) -> dict[str, object]:
    """All steps, the prompt's too, in a lane for the source, each hop and each device."""
    slices = [
        Slice(
            part.where,
            part.kind,
            part.kind,
            part.start,
            part.stop,
            {"step": step.number, "positions": step.num_tokens, "is_decode": step.is_decode},
        )
        for step in steps
        for part in step.parts
        if part.seconds > 0
    ]
    return chrome_trace(places(trace), slices)


def table(steps: Sequence[StepTimes]) -> Table:
    """What a token takes where; the last row is the whole token."""
    made = table_of_shares(breakdown(steps))
    decode = [step.seconds for step in steps if step.is_decode]
    if decode:
        made.add_section()
        made.add_row("a token", "all", *map(_ms, spread(decode)), "100.0%")
    return made


def table_of_shares(shares: Sequence[Share]) -> Table:
    """A row for each place and kind of part."""
    made = Table("where", "what")
    for head in ("median ms", "10 % ms", "90 % ms", "share"):
        made.add_column(head, justify="right")
    for one in shares:
        times = (one.median_seconds, one.low_seconds, one.high_seconds)
        made.add_row(one.where, one.kind, *map(_ms, times), f"{one.share:.1%}")
    return made


def summary(result: Result, steps: Sequence[StepTimes]) -> list[str]:
    """Lines beside the table: the prompt, what the client saw, how far the clocks are known."""
    prompt = [step for step in steps if not step.is_decode]
    decode = [step.seconds for step in steps if step.is_decode]
    lines = []
    if prompt:
        first = prompt[-1].parts[-1].stop - prompt[0].parts[0].start
        lines.append(
            f"prompt: {sum(step.num_tokens for step in prompt)} positions in {len(prompt)} "
            f"step{'s' if len(prompt) > 1 else ''}, "
            f"first token back after {_ms(first)} ms"
        )
    if decode and result.token_seconds:
        lines.append(
            f"{len(decode)} tokens, {_ms(statistics.mean(decode))} ms each at the source on "
            f"average, {_ms(statistics.mean(result.token_seconds))} ms each as the client saw them"
        )
    for index, clock in enumerate(result.trace.clocks if result.trace else ()):
        known = (
            "no ping came back: placed between its neighbours"
            if clock.offset_seconds is None
            else f"offset known within {_ms(clock.error_seconds)} ms"
        )
        lines.append(f"clock of stage {index} on {clock.device}: {known}")
    return lines


def plain(result: Result, steps: Sequence[StepTimes]) -> dict[str, object]:
    """The table as plain values, in seconds."""
    decode = [step.seconds for step in steps if step.is_decode]
    return {
        "num_tokens": len(decode),
        "token_seconds": statistics.mean(decode) if decode else None,
        "client_token_seconds": (
            statistics.mean(result.token_seconds) if result.token_seconds else None
        ),
        "parts": [asdict(one) for one in breakdown(steps)],
        "clocks": [
            {
                "device": clock.device,
                "offset_seconds": clock.offset_seconds,
                "error_seconds": clock.error_seconds,
            }
            for clock in (result.trace.clocks if result.trace else ())
        ],
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"

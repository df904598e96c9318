"""What a run comes to: first token, time between tokens, rate, and how busy everything was."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median

from edgeshard.errors import InputError
from edgeshard.simulate.engine import Run


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Share of the time in which a device or link was busy."""

    where: str
    share: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run.

    Attributes:
        token_seconds: from one token of a request to its next, median over all; None where no
            request has two.
        first_token_seconds: from a request's arrival to its first token, mean.
        tokens_per_second: all tokens by the time from the first arrival to the last token.
        steady_tokens_per_second: rate within the middle half of all tokens, where prompts and the
            end of the run matter less; None below eight tokens.
        seconds: from the first arrival to the last token.
        utilisation: of devices and links in the order of the chain.
    """

    num_requests: int
    num_tokens: int
    token_seconds: float | None
    first_token_seconds: float
    tokens_per_second: float
    steady_tokens_per_second: float | None
    seconds: float
    utilisation: tuple[Utilisation, ...]


def figures(run: Run) -> Figures:
    """Sum a run up.

    Raises:
        InputError: no time passed, so nothing can be said.
    """
    by_request: defaultdict[int, list[float]] = defaultdict(list)
    for token in run.tokens:
        by_request[token.request].append(token.seconds)
    begun = min(arrival.at_seconds for arrival in run.arrivals)
    seconds = run.tokens[-1].seconds - begun
    if not seconds > 0:
        raise InputError("every stage and hop of the plan takes 0 s; profile and plan again")
    gaps = [
        after - before
        for times in by_request.values()
        for before, after in itertools.pairwise(times)
    ]
    busy: defaultdict[str, float] = defaultdict(float)
    for one in run.busy:
        busy[one.where] += one.stop - one.start
    return Figures(
        num_requests=len(run.arrivals),
        num_tokens=len(run.tokens),
        token_seconds=median(gaps) if gaps else None,
        first_token_seconds=mean(
            times[0] - run.arrivals[request].at_seconds for request, times in by_request.items()
        ),
        tokens_per_second=len(run.tokens) / seconds,
        steady_tokens_per_second=_steady([token.seconds for token in run.tokens]),
        seconds=seconds,
        utilisation=tuple(
            Utilisation(where, busy[where] / seconds) for where in places(run) if where in busy
        ),
    )


def places(run: Run) -> list[str]:
    """Devices and the links behind them, in the order of the chain."""
    found = []
    for index, stage in enumerate(run.chain.stages):
        found += [stage.device, f"{stage.device} -> {run.chain.target(index)}"]
    return list(dict.fromkeys(found))


def _steady(times: list[float]) -> float | None:
    start, stop = len(times) // 4, 3 * len(times) // 4
    if len(times) < 8 or not times[stop] > times[start]:
        return None
    return (stop - start) / (times[stop] - times[start])

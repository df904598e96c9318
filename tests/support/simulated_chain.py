"""Chains to simulate, by hand."""

from __future__ import annotations

from edgeshard.runtime.schedule import Limits
from edgeshard.simulate import Arrival, Options, Run, SimulatedChain, simulate
from edgeshard.simulate.chain import Hop, SimulatedStage


def make_chain(
    compute_seconds: list[float],
    busy_seconds: float = 0.0,
    latency_seconds: float = 0.0,
    return_seconds: float = 0.0,
    entry_seconds: float = 0.0,
    prompt_tokens: int = 1,
) -> SimulatedChain:
    """Stages on `a`, `b`, …; a position of a prompt takes as long as a token."""
    last = len(compute_seconds) - 1
    stages = [
        SimulatedStage(
            device="abcdefgh"[index],
            decode_seconds=seconds,
            prompt_seconds=seconds * prompt_tokens,
            hop=Hop(return_seconds, 0.0, 0.0)
            if index == last
            else Hop(latency_seconds, busy_seconds, busy_seconds),
        )
        for index, seconds in enumerate(compute_seconds)
    ]
    return SimulatedChain("a", entry_seconds, prompt_tokens, tuple(stages))


def run_chain(
    chain: SimulatedChain,
    num_requests: int = 1,
    new_tokens: int = 40,
    prompt_tokens: int = 1,
    options: Options | None = None,
    *,
    slots: int | None = None,
    in_rounds: bool = False,
    chunk_tokens: int = 512,
    num_groups: int | None = None,
) -> Run:
    """All requests at once, each with a slot unless there are fewer."""
    limits = Limits(
        slots=slots or num_requests,
        context=100_000,
        window=len(chain.stages),
        chunk_tokens=chunk_tokens,
        max_waiting=num_requests,
        in_rounds=in_rounds,
        num_groups=num_groups,
    )
    arrivals = [Arrival(0.0, prompt_tokens, new_tokens)] * num_requests
    return simulate(chain, limits, arrivals, options)

"""Measures a chain on loopback under several requests at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.local_run import Say, running_chain
from edgeshard.runtime.client import AsyncClient
from edgeshard.runtime.local import LocalCluster
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest

PROMPT = "Write about rivers and the towns beside them, number {number}."
NUM_TOKENS = 48


@dataclass(frozen=True)
class LoadRow:
    """Requests that run at once.

    Attributes:
        tokens_per_second: new tokens of all together over the time from the first question to the
            last answer, prompts included; median.
        token_ms: median milliseconds between the tokens of one request.
        samples: tokens per second of each round.
    """

    requests: int
    tokens_per_second: float
    token_ms: float
    samples: tuple[float, ...]


def bench_load(
    folder: Path,
    store: Store,
    model: ModelManifest,
    blob: Blob,
    *,
    most: int,
    context: int = 256,
    rounds: int = 5,
    on_step: Say = lambda _: None,
) -> tuple[LoadRow, ...]:
    """Measure 1, 2, 4, … and `most` requests at once through three stages, in turns.

    Raises:
        EdgeShardError: the chain cannot be set up, or a request failed.
    """
    counts = sorted({most, *(2**power for power in range(most.bit_length()))})
    with running_chain(
        folder, store, model, blob, context=context, slots=most, on_step=on_step
    ) as running:
        rates, steps = asyncio.run(_measure(running.local, counts, rounds, on_step))
    return tuple(
        LoadRow(
            count,
            statistics.median(rates[count]),
            statistics.median(steps[count]) * 1e3,
            tuple(rates[count]),
        )
        for count in counts
    )


async def _measure(
    local: LocalCluster, counts: list[int], rounds: int, on_step: Say
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    rates: dict[int, list[float]] = {count: [] for count in counts}
    steps: dict[int, list[float]] = {count: [] for count in counts}
    async with AsyncClient.connect(local.cluster_path, local.key_path) as client:
        for number in range(rounds + 1):
            for count in counts:
                rate, seconds = await _together(client, count)
                if number:  # the first warms up
                    rates[count].append(rate)
                    steps[count] += seconds
            on_step(f"round {number} of {rounds}")
    return rates, steps


async def _together(client: AsyncClient, count: int) -> tuple[float, list[float]]:
    """Tokens per second of all, and the seconds of every token behind a first one."""
    started = time.perf_counter()
    running = [
        client.generate(
            PROMPT.format(number=number), raw=True, max_tokens=NUM_TOKENS, ignore_eos=True
        )
        for number in range(count)
    ]
    results = await asyncio.gather(*(generation.finish() for generation in running))
    elapsed = time.perf_counter() - started
    seconds = [second for result in results for second in result.token_seconds]
    return count * NUM_TOKENS / elapsed, seconds

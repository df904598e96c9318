"""Ten times more requests than a chain can answer: do the accepted ones keep their speed?

python benchmarks/overload.py --seconds 60

First the full batch alone: a client for each slot, one request behind the other; they give the rate
that the chain can do. Then ten times that rate for some seconds, whatever comes back. Three stages
of made-up units in processes of their own on loopback, so that it is the serving that is measured
and no kernel; the memory of all of them is read when the queue is full and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgeshard.errors import BusyError
from edgeshard.runtime.client import AsyncClient
from edgeshard.runtime.local import LocalCluster

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.runtime_chain import deploy_double, family, local_cluster
from support.runtime_double import SLOTS

NUM_TOKENS = 50
TIMES = 10
FILL_SECONDS = 12.0  # the queue of 64 is full by then


@dataclass
class Seen:
    """What the clients saw."""

    token_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)
    answers: int = 0


async def ask(client: AsyncClient, seen: Seen) -> None:
    """One request, to whatever end."""
    started = time.perf_counter()
    try:
        async with client.generate(
            "hello", raw=True, max_tokens=NUM_TOKENS, ignore_eos=True
        ) as generation:
            result = await generation.finish()
    except BusyError:
        seen.refusal_ms.append((time.perf_counter() - started) * 1e3)
    else:
        seen.answers += 1
        seen.token_ms += [seconds * 1e3 for seconds in result.token_seconds]


async def full_batch(client: AsyncClient, seconds: float) -> Seen:
    """A request in each slot, the next one behind it."""
    seen, until = Seen(), time.perf_counter() + seconds

    async def again() -> None:
        while time.perf_counter() < until:
            await ask(client, seen)

    await asyncio.gather(*(again() for _ in range(SLOTS)))
    return seen


async def overload(client: AsyncClient, every: float, seconds: float) -> Seen:
    """A new request every so many seconds; those that wait in the end are given up."""
    seen, until = Seen(), time.perf_counter() + seconds
    running: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.add(asyncio.create_task(ask(client, seen)))
        due += every
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return seen


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else float("nan")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder)) as cluster:
        deploy_double(cluster, "slow")
        print(asyncio.run(measure(cluster, chosen.seconds)))


async def measure(cluster: LocalCluster, seconds: float) -> str:
    """Both loads, and what they say."""
    everyone = family(cluster)

    def mebibytes() -> float:
        return float(sum(process.memory_info().rss for process in everyone)) / 2**20

    async with AsyncClient.connect(cluster.cluster_path, cluster.key_path) as client:
        await full_batch(client, 2.0)
        started = time.perf_counter()
        alone = await full_batch(client, 10.0)
        every = (time.perf_counter() - started) / alone.answers / TIMES
        await overload(client, every, FILL_SECONDS)
        before = mebibytes()
        many = await overload(client, every, seconds)
        after = mebibytes()
    ratio = p99(many.token_ms) / p99(alone.token_ms)
    return (
        f"full batch alone: {alone.answers} answers, p99 {p99(alone.token_ms):.1f} ms a token\n"
        f"a request each {every * 1e3:.0f} ms: {many.answers} answers, "
        f"p99 {p99(many.token_ms):.1f} ms a token, {ratio:.2f} times\n"
        f"refused: {len(many.refusal_ms)}, p50 {statistics.median(many.refusal_ms):.0f} ms, "
        f"p99 {p99(many.refusal_ms):.0f} ms, connecting included\n"
        f"memory of all processes: {before:.0f} MiB before, {after:.0f} MiB after"
    )


if __name__ == "__main__":
    main()

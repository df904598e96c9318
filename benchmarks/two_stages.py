"""Two stages of equal work, a core each, eight requests in flight: what of their rate arrives?

    python -m benchmarks.two_stages --store store --model int4 --work work --json two.json

Each round measures both stages unchained, in a process each, pinned to a core each, both busy at
the same time, at the batch and the positions that the chain has; then the chain, its workers pinned
in the same way, from the token with which the last request has begun to the one with which the
first ends. The ratio is the chain's rate to that of the slower stage. The cut is searched first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import psutil

from benchmarks.chains import Chain, chain, cpu_seconds, pin, spread
from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.client import AsyncClient
from edgeshard.system import computing_environment

PROMPT_TOKENS = 64
REQUESTS = 8
TIMEOUT_SECONDS = 120.0
TRIAL_STEPS = 60


@dataclass(frozen=True)
class Round:
    """Tokens per second, and shares of the processor time of both cores."""

    stage_rates: tuple[float, float]
    chain_rate: float
    worker_share: float
    source_share: float
    client_share: float

    @property
    def ratio(self) -> float:
        """Of the chain's rate to the slower stage's."""
        return self.chain_rate / min(self.stage_rates)


def run_stage(
    root: Path, name: str, units: tuple[int, int], batch: int, steps: int, core: int, both: Barrier
) -> float:
    """Median seconds of a decode step of a stage that runs while another one does."""
    from edgeshard.runtime.session import ShardSession

    store = Store(root)
    model, blob = store.model(name)
    shard, _ = fuse(store, model, blob, *units)
    context = PROMPT_TOKENS + steps
    session = ShardSession.open(store, shard, threads=1, context=context, slots=batch)
    pin(os.getpid(), core)
    shape = (batch, 1) if shard.has_embedding else (batch, 1, shard.hidden_size)
    states = np.random.default_rng(0).standard_normal(shape, np.float32)
    values = np.full(shape, 100) if shard.has_embedding else states
    for _ in range(8):
        session.run(0, [PROMPT_TOKENS] * batch, values)
    both.wait(TIMEOUT_SECONDS)
    seconds = []
    for position in range(PROMPT_TOKENS, PROMPT_TOKENS + steps):
        started = time.perf_counter()
        session.run(0, [position] * batch, values)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def unchained(root: Path, name: str, cut: int, batch: int, steps: int) -> tuple[float, float]:
    """Sequences per second and stage, both at once."""
    spawn = multiprocessing.get_context("spawn")
    stop = len(Store(root).model(name)[0].units)
    with spawn.Manager() as manager, spawn.Pool(2) as pool:
        both = manager.Barrier(2)
        waiting = [
            pool.apply_async(run_stage, (root, name, units, batch, steps, core, both))
            for core, units in enumerate([(0, cut), (cut, stop)])
        ]
        first, second = (batch / one.get(TIMEOUT_SECONDS) for one in waiting)
    return first, second


def equal_cut(root: Path, name: str, batch: int) -> int:
    """The cut at which both stages take most nearly as long."""
    low, high = 2, len(Store(root).model(name)[0].units) - 1
    found: dict[int, float] = {}
    while low <= high:
        cut = (low + high) // 2
        first, second = unchained(root, name, cut, batch, TRIAL_STEPS)
        found[cut] = abs(first / second - 1)
        low, high = (cut + 1, high) if first > second else (low, cut - 1)
    return min(found, key=lambda cut: found[cut])


async def chained(running: Chain, steps: int) -> tuple[float, float, float, float]:
    """Tokens per second of the chain; shares of workers, source and client in two cores."""
    parties = (running.workers, running.source, [psutil.Process()])
    times: list[list[float]] = [[] for _ in range(REQUESTS)]
    marks: list[tuple[float, list[float]]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), [cpu_seconds(party) for party in parties]))

    async with AsyncClient.connect(running.local.cluster_path, running.local.key_path) as client:

        async def ask(number: int) -> None:
            prompt = f"{number} " + "a " * (PROMPT_TOKENS - 4)
            async with client.generate(
                prompt, raw=True, max_tokens=steps, ignore_eos=True
            ) as generation:
                async for _ in generation:
                    times[number].append(time.perf_counter())
                    if not marks and all(times):
                        mark()
            if len(marks) == 1:
                mark()

        await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
    (begin, before), (end, after) = marks
    count = sum(1 for one in times for at in one if begin < at <= end)
    window = end - begin
    shares = [(b - a) / (2 * window) for a, b in zip(before, after, strict=True)]
    return count / window, shares[0], shares[1], shares[2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder on the store's disk")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--cut", type=int, help="first unit of the second stage; default: search")
    parser.add_argument("--steps", type=int, default=160, help="tokens of each request")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    os.environ.update(computing_environment())
    store, batch = Store(chosen.store), -(-REQUESTS // chosen.groups)
    cut = chosen.cut or equal_cut(chosen.store, chosen.model, batch)
    context = PROMPT_TOKENS + chosen.steps + 8
    rounds: list[Round] = []
    with chain(
        chosen.work,
        store,
        chosen.model,
        (cut,),
        threads=1,
        context=context,
        slots=REQUESTS,
        groups=chosen.groups,
    ) as running:
        for core, worker in enumerate(running.workers):
            pin(worker, core)
        asyncio.run(chained(running, 16))
        for number in range(chosen.rounds):
            rates = unchained(chosen.store, chosen.model, cut, batch, chosen.steps)
            rounds.append(Round(rates, *asyncio.run(chained(running, chosen.steps))))
            one = rounds[-1]
            print(f"round {number + 1}: {one.ratio:.3f}", asdict(one), flush=True)
    print(f"cut at unit {cut}, {chosen.groups} groups of {batch}")
    print("| | median (spread) |\n| --- | --- |")
    print(f"| stage 0 unchained, sequences/s | {spread([r.stage_rates[0] for r in rounds], 1)} |")
    print(f"| stage 1 unchained, sequences/s | {spread([r.stage_rates[1] for r in rounds], 1)} |")
    print(f"| chain, tokens/s | {spread([r.chain_rate for r in rounds], 1)} |")
    print(f"| chain / slower stage | {spread([r.ratio for r in rounds], 3)} |")
    print(f"| workers' share of both cores | {spread([r.worker_share for r in rounds], 3)} |")
    print(f"| source's share | {spread([r.source_share for r in rounds], 3)} |")
    print(f"| client's share | {spread([r.client_share for r in rounds], 3)} |")
    if chosen.json:
        found = {"cut": cut, "groups": chosen.groups, "rounds": [asdict(one) for one in rounds]}
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

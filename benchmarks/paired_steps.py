"""Times a decode step and a prompt of several models, in turns in one process.

All models of `--model` are loaded at once, whole, and take turns in every round, so a machine that
drifts does so for all. Prints for each the median milliseconds and the median ratio to the first
model within a round, with the lowest and the highest.

Example:
    python benchmarks/paired_steps.py --store STORE --model int4 --model int4-4.19 --rounds 12
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.session import ShardSession
from edgeshard.system import computing_environment

Timed = Callable[[ShardSession], float]
STEPS, WARM_UP = 8, 2
CHUNK = 512


def opened(store: Store, name: str, threads: int, context: int) -> ShardSession:
    """A whole model as one shard."""
    manifest, blob = store.model(name)
    shard, _ = fuse(store, manifest, blob, 0, len(manifest.units))
    return ShardSession.open(store, shard, threads=threads, context=context)


def step_seconds(session: ShardSession, position: int) -> float:
    """Median time of a step at a position, once it is warm."""
    times = []
    for token in range(STEPS):
        start = time.perf_counter()
        session.run(0, [position], np.array([[token]]))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def prompt_seconds(session: ShardSession, tokens: NDArray[np.int64]) -> float:
    """Time of a prompt in chunks."""
    start = time.perf_counter()
    for place in range(0, len(tokens), CHUNK):
        session.run(0, [place], tokens[None, place : place + CHUNK])
    return time.perf_counter() - start


def rows(
    sessions: dict[str, ShardSession],
    what: str,
    rounds: int,
    timed: Timed,
) -> Iterator[str]:
    """A line for each model."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            taken[name].append(timed(session))
    first = next(iter(taken.values()))
    for name, times in taken.items():
        ratios = sorted(mine / base for mine, base in zip(times, first, strict=True))
        yield (
            f"{what:<12} {name:<24} {1e3 * statistics.median(times):9.2f} ms  "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--contexts", type=int, nargs="*", default=[64, 1000, 1900])
    parser.add_argument("--prompts", type=int, nargs="*", default=[37, 1900])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    longest = max([*arguments.contexts, *arguments.prompts, 0]) + 1
    random = np.random.default_rng(0)
    store = Store(arguments.store)
    sessions = {n: opened(store, n, arguments.threads, longest) for n in arguments.model}
    measured: list[tuple[str, Timed]] = [
        (f"step {context}", partial(step_seconds, position=context))
        for context in arguments.contexts
    ]
    measured += [
        (f"prompt {length}", partial(prompt_seconds, tokens=random.integers(3, 256, length)))
        for length in arguments.prompts
    ]
    for what, timed in measured:
        for line in rows(sessions, what, arguments.rounds, timed):
            print(line, flush=True)


if __name__ == "__main__":
    if sys.platform == "linux" and "hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
        # Weights in huge pages, as a worker has them; glibc looks at this when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], computing_environment())
    main()

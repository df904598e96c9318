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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.bench import OneProcess
from edgeshard.system import computing_environment

Timed = Callable[[OneProcess], float]
STEPS, WARM_UP = 8, 2


def step_seconds(model: OneProcess, context: int) -> float:
    """Mean time of a step, once it is warm."""
    model.decode(context, WARM_UP)
    return model.decode(context, STEPS) / STEPS


def rows(models: dict[str, OneProcess], what: str, rounds: int, timed: Timed) -> Iterator[str]:
    """A line for each model."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            taken[name].append(timed(model))
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
    longest = max([*(c + STEPS for c in arguments.contexts), *arguments.prompts])
    store = Store(arguments.store)
    models = {
        name: OneProcess(store, *store.model(name), arguments.threads, longest)
        for name in arguments.model
    }
    measured: list[tuple[str, Timed]] = [
        (f"step {context}", partial(step_seconds, context=context))
        for context in arguments.contexts
    ]
    measured += [
        (f"prompt {length}", partial(OneProcess.prefill, length=length))
        for length in arguments.prompts
    ]
    for what, timed in measured:
        for line in rows(models, what, arguments.rounds, timed):
            print(line, flush=True)


if __name__ == "__main__":
    if sys.platform == "linux" and "hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
        # Weights in huge pages, as a worker has them; glibc looks at this when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], computing_environment())
    main()

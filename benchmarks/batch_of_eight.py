"""Eight sequences that decode together, beside llama.cpp's, in one process each.

    python -m benchmarks.batch_of_eight --peers peers --store store --model int4 --json eight.json

A round runs ours and `llama-batched-bench` once for each of its attention kernels, each in a fresh
process, in an order that moves on by one. Rates are of all eight together; prompts are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chains import spread
from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.session import ShardSession
from edgeshard.system import computing_environment

NEW_TOKENS = 64
OURS = "EdgeShard"


def own_rate(root: Path, name: str, threads: int, batch: int, context: int) -> float:
    """Tokens per second of greedy steps of `batch` sequences after `context` positions."""
    store = Store(root)
    model, blob = store.model(name)
    shard, _ = fuse(store, model, blob, 0, len(model.units))
    length = context + NEW_TOKENS
    session = ShardSession.open(store, shard, threads=threads, context=length, slots=batch)
    generator = np.random.default_rng(0)
    for slot in range(batch):
        for start in range(0, context, 512):
            size = min(512, context - start)
            tokens = generator.integers(100, model.vocab_size, (1, size))
            session.run(slot, [start], tokens)
    tokens = np.full((batch, 1), 100, np.int64)
    for _ in range(4):
        session.run(0, [context] * batch, tokens)
    started = time.perf_counter()
    for position in range(context, length):
        logits = session.run(0, [position] * batch, tokens)
        tokens = logits.argmax(-1)[:, None]
    return batch * NEW_TOKENS / (time.perf_counter() - started)


def run_own(arguments: list[str]) -> float:
    """The same in a process of its own, as stages run."""
    command = [sys.executable, "-m", "benchmarks.batch_of_eight", "--own", *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=computing_environment()
    )
    return float(done.stdout)


def run_llama(
    bench: Path, model: Path, attention: str, threads: int, batch: int, context: int
) -> float:
    """Tokens per second of llama.cpp's generation."""
    length = batch * (context + NEW_TOKENS)
    command = [bench, "-m", model, "-t", threads, "-tb", threads, "-fa", attention, "-c", length]
    command += ["-npp", context, "-ntg", NEW_TOKENS, "-npl", batch, "--output-format", "jsonl"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    return float(rows[-1]["speed_tg"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the --out folder of build_peers.py")
    parser.add_argument("--gguf", default="Q4_0.gguf", help="of the peers' models")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    place = (chosen.store, chosen.model, chosen.threads, chosen.batch)
    if chosen.own:
        print(own_rate(*place, chosen.contexts[0]))
        return
    bench = chosen.peers / "llama-build" / "bin" / "llama-batched-bench"
    gguf = chosen.peers / "models" / chosen.gguf
    own = ["--store", str(chosen.store), "--model", chosen.model, "--batch", str(chosen.batch)]
    own += ["--threads", str(chosen.threads), "--contexts"]
    found: dict[int, dict[str, list[float]]] = {}
    for context in chosen.contexts:
        jobs = {OURS: partial(run_own, [*own, str(context)])}
        for attention in ("off", "on"):
            name = f"llama.cpp {gguf.stem} fa={attention}"
            jobs[name] = partial(
                run_llama, bench, gguf, attention, chosen.threads, chosen.batch, context
            )
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        names = list(jobs)
        for number in range(chosen.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                rates[name].append(jobs[name]())
            print(f"context {context}, round {number + 1}:", {n: r[-1] for n, r in rates.items()})
        found[context] = rates
    print("| context | system | tokens/s of all | ours to it |\n| --: | --- | --- | --- |")
    for context, rates in found.items():
        for name in sorted(rates, key=lambda one: -statistics.median(rates[one])):
            paired = [a / b for a, b in zip(rates[OURS], rates[name], strict=True)]
            cell = "" if name == OURS else spread(paired)
            print(f"| {context} | {name} | {spread(rates[name], 1)} | {cell} |")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A prompt in one process, by the size of its chunks.

    python -m benchmarks.chunk_size --store store --model int4 --prompt 1900 --json sizes.json

All sizes in turns; ratios are taken within a round, to the last of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.chains import spread
from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.session import ShardSession


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=1900, help="tokens")
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    store, length = Store(chosen.store), chosen.prompt
    model, blob = store.model(chosen.model)
    shard, _ = fuse(store, model, blob, 0, len(model.units))
    session = ShardSession.open(store, shard, threads=chosen.threads, context=length)
    tokens = np.random.default_rng(0).integers(100, model.vocab_size, (1, length))
    found: dict[int, list[float]] = {size: [] for size in chosen.chunks}
    for number in range(chosen.rounds + 1):
        for size in chosen.chunks:
            started = time.perf_counter()
            for start in range(0, length, size):
                part = tokens[:, start : min(start + size, length)]
                session.run(0, [start], part)
            if number:  # the first warms up
                found[size].append(time.perf_counter() - started)
    print(f"| chunk | tokens/s | time to that of {chosen.chunks[-1]} |\n| --: | --: | --- |")
    for size, seconds in found.items():
        rate = length / statistics.median(seconds)
        paired = [a / b for a, b in zip(seconds, found[chosen.chunks[-1]], strict=True)]
        print(f"| {size} | {rate:.0f} | {spread(paired)} |")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

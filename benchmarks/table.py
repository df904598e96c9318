"""Prints the speed table of the README: one process and a chain of three, on this machine.

    python benchmarks/table.py --folder DIR [--rounds N]

The demo's model is compiled to every precision first. Peers are measured by `peers.py`, in one run
with ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.bench import bench_model
from edgeshard.chain_bench import bench_chain
from edgeshard.compiler.compile import compile_model
from edgeshard.local_run import default_checkpoint
from edgeshard.schemas.common import Precision

PRECISIONS: tuple[Precision, ...] = ("int4", "stored", "int8", "fp32")


def main() -> None:
    """Compile, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    store = Store(arguments.folder / "store")
    checkpoint = default_checkpoint()
    print("| precision | compile s | prefill 37 | prefill 1,900 | decode 64 | 1,000 | 1,900 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for precision in PRECISIONS:
        started = time.perf_counter()
        compiled = compile_model(checkpoint, store, precision=precision)
        cells = [precision, f"{time.perf_counter() - started:.1f}"]
        for row in bench_model(
            store,
            compiled.manifest,
            compiled.blob,
            threads=2,
            contexts=(64, 1000, 1900),
            prompts=(37, 1900),
            rounds=arguments.rounds,
        ):
            low, high = min(row.samples), max(row.samples)
            cells.append(f"{row.tokens_per_second:.1f} ({low:.1f}-{high:.1f})")
        print(f"| {' | '.join(cells)} |", flush=True)
    manifest, blob = store.model(f"{checkpoint.name.removesuffix('.gguf')}-int4")
    result = bench_chain(
        arguments.folder, store, manifest, blob, rounds=arguments.rounds, on_step=lambda _: None
    )
    print(
        f"\nint4, {result.num_stages} stages on loopback: predicted {result.predicted_ms:.2f} ms a "
        f"token, measured {statistics.median(result.chain_ms):.2f} "
        f"({min(result.chain_ms):.2f}-{max(result.chain_ms):.2f}), "
        f"{result.prediction_error:+.1%}; one process "
        f"{statistics.median(result.one_process_ms):.2f}; rate ratio {result.decode_ratio:.2f}"
    )


if __name__ == "__main__":
    main()

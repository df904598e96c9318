"""How many values should share a scale where hidden states travel as int8?

    python benchmarks/link_blocks.py --store STORE --model NAME --cuts 11,21 --blocks 32,64,192,576

Prints a row of a table for each size: bytes of a position, and the cost beside fp32 links.
"""

from __future__ import annotations

import argparse
import math
from importlib import resources
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.link_quality import measure_links
from edgeshard.runtime.text import load_text
from edgeshard.schemas import activation
from edgeshard.windows import windows_of


def main() -> None:
    """Measure every size on the same text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cuts", required=True)
    parser.add_argument("--blocks", required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=6)
    given = parser.parse_args()
    store = Store(given.store)
    manifest, blob = store.model(given.model)
    text = resources.files("edgeshard").joinpath("texts", "lincoln.txt").read_text("utf-8")
    ids = load_text(store, manifest).encode_raw(text)
    windows = windows_of(ids, given.window, given.windows)
    cuts = tuple(int(cut) for cut in given.cuts.split(","))
    print("| values a scale | bytes of a position | mean KL | perplexity | top-1 |")
    print("| --- | --- | --- | --- | --- |")
    for block in (int(size) for size in given.blocks.split(",")):
        activation.BLOCK_VALUES = block
        shared = activation.block_values(manifest.hidden_size)
        size = activation.state_bytes(manifest.hidden_size, "int8")
        (cost,) = measure_links(store, manifest, blob, windows, ["int8"], cuts).links
        print(
            f"| {shared} | {size} | {cost.mean_kl:.2e} | {100 * math.expm1(cost.log_ratio):+.2f} % "
            f"| {cost.top1_agreement:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

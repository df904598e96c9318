"""How long a stage takes to be ready from a cold cache, and what it holds then and in use.

    python benchmarks/make_checkpoint.py --size 7b --layers 10 --out checkpoint
    esc compile checkpoint --out store --precision int4 --name wide
    python -m benchmarks.load --store store --model wide --work work --json load.json

A round reads all blobs of the shard once and compares their digests, with nothing of them in the
page cache; then, with nothing of them there again, an agent starts a worker for the whole model,
which answers one prompt of several chunks. `ready` is what the operator waits for: the worker's
process, its imports, the check of every byte, and ONNX Runtime's session. Its limit is 1.5 times
the read and 2 s; that of memory is 1.15 times weights, keys and values, and 150 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chains import MIB, chain, spread
from edgeshard.artifacts.store import Store
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import DeployProgress
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest

PROMPT_TOKENS = 1100
NEW_TOKENS = 32
MORE_MIB = 150


@dataclass(frozen=True)
class Round:
    """Seconds, MiB, and the share of the weights that came from the disk."""

    read_seconds: float
    read_from_disk: float
    ready_seconds: float
    ready_from_disk: float
    ready_mib: float
    used_mib: float
    peak_mib: float


def forget(store: Store, blobs: list[Blob]) -> None:
    """Drop blobs from the page cache."""
    for blob in blobs:
        handle = os.open(store.path(blob), os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def disk_bytes(pid: int) -> int:
    """What a process had read from the disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def peak_bytes(pid: int) -> int:
    """The most that a process has held at any time."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def one_round(
    folder: Path, store: Store, model: ModelManifest, threads: int, context: int
) -> Round:
    """Read, load, use."""
    weights = list({b.digest: b for unit in model.units for b in unit.weights}.values())
    size = sum(blob.size_bytes for blob in weights)
    forget(store, weights)
    before, started = disk_bytes(os.getpid()), time.perf_counter()
    store.verify(weights)
    read = time.perf_counter() - started
    read_bytes = disk_bytes(os.getpid()) - before
    forget(store, weights)
    begun: list[float] = []
    ended: list[float] = []

    def note(progress: DeployProgress) -> None:
        if progress.text.startswith("loading"):
            begun.append(time.perf_counter())
        elif " ready in " in progress.text:
            ended.append(time.perf_counter())

    with chain(
        folder, store, model.name, threads=threads, context=context, on_progress=note
    ) as running:
        from_disk = disk_bytes(running.workers[0].pid)
        ready_mib = running.workers[0].memory_info().rss / MIB
        with Client.connect(running.local.cluster_path, running.local.key_path) as client:
            use(client, context)
        used_mib = running.workers[0].memory_info().rss / MIB
        peak_mib = peak_bytes(running.workers[0].pid) / MIB
    return Round(
        read_seconds=read,
        read_from_disk=read_bytes / size,
        ready_seconds=ended[0] - begun[0],
        ready_from_disk=from_disk / size,
        ready_mib=ready_mib,
        used_mib=used_mib,
        peak_mib=peak_mib,
    )


def use(client: Client, context: int) -> None:
    """One answer to a prompt of several chunks."""
    words = min(PROMPT_TOKENS, context - NEW_TOKENS - 8)
    prompt = " ".join(["a"] * (words // 2))
    with client.generate(prompt, raw=True, max_tokens=NEW_TOKENS, ignore_eos=True) as generation:
        generation.finish()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder on the store's disk")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    store = Store(chosen.store)
    model, _ = store.model(chosen.model)
    weights = {b.digest: b.size_bytes for unit in model.units for b in unit.weights}
    weights_mib = sum(weights.values()) / MIB
    kv_mib = model.num_blocks * model.kv.bytes_per_token() * chosen.context / MIB
    memory_limit = 1.15 * (weights_mib + kv_mib + MORE_MIB)
    rounds = []
    for number in range(chosen.rounds):
        made = one_round(chosen.work, store, model, chosen.threads, chosen.context)
        rounds.append(made)
        print(f"round {number + 1}:", {k: round(v, 2) for k, v in asdict(made).items()}, flush=True)
    limits = [1.5 * one.read_seconds + 2 for one in rounds]
    print(f"weights {weights_mib:.0f} MiB, keys and values {kv_mib:.0f} MiB")
    print("| | median (spread) | limit | of the limit |\n| --- | --- | --- | --- |")
    print(f"| verified read, s | {spread([one.read_seconds for one in rounds])} | | |")
    print(
        f"| ready, s | {spread([one.ready_seconds for one in rounds])} | {spread(limits)} | "
        f"{spread([a.ready_seconds / b for a, b in zip(rounds, limits, strict=True)])} |"
    )
    for what, values in (
        ("when ready", [one.ready_mib for one in rounds]),
        ("after the answer", [one.used_mib for one in rounds]),
        ("at its highest", [one.peak_mib for one in rounds]),
    ):
        print(
            f"| resident {what}, MiB | {spread(values, 0)} | {memory_limit:.0f} | "
            f"{spread([value / memory_limit for value in values])} |"
        )
    if chosen.json:
        about = {"weights_mib": weights_mib, "kv_mib": kv_mib, "memory_limit_mib": memory_limit}
        found = {**about, "rounds": [asdict(one) for one in rounds]}
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

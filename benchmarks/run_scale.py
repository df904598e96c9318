r"""Run a large compiled model on loopback as one stage and as several, and compare.

Every stage is an agent's worker process with a memory limit of its own, which the agent enforces.
The plan comes from the planner, over made-up profiles that differ in memory only, so no unit is
measured first. Printed: tokens, milliseconds a token beside what reading the weights once takes at
the memory bandwidth measured in the same run, and the resident memory of each stage.

Example:
    python benchmarks/run_scale.py --store build/scale/store-int4 --model llama2-7b-int4 \
        --work build/run --stages 1 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.planner import make_plan
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.survey import survey
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import (
    DecodePoint,
    DeviceProfile,
    LinkProfile,
    PrefillPoint,
    Profile,
    Timing,
    UnitProfile,
)

PROVIDER = "CPUExecutionProvider"
PROMPT = "Rivers and the towns beside them"
MIB = 2**20
SILENCE_SECONDS = 600.0  # a slow machine is not a lost one
BASELINE_BYTES = 120 * MIB  # of a worker with nothing loaded, workspace included


@dataclass(frozen=True)
class Run:
    """One chain: what came out and what it took."""

    num_stages: int
    ranges: list[tuple[int, int]]
    limit_mib: int
    resident_mib: list[int]
    weights_mib: list[int]
    token_ids: list[int]
    ms_per_token: float
    first_token_seconds: float


def bandwidth(threads: int) -> float:
    """Bytes a second that `threads` readers take from memory together, best of five."""
    arrays = [np.ones(2**25, np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=array.sum) for array in arrays]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - started))
    return best


def made_up(model: ModelManifest, digest: str, names: list[str], memory_bytes: int) -> Profile:
    """Equal devices whose time for a unit is in proportion to its bytes."""
    units = {}
    for unit in model.units:
        size = sum(blob.size_bytes for blob in unit.weights)
        seconds = size / 10e9
        time_of = Timing(
            median_seconds=seconds, low_seconds=seconds, high_seconds=seconds, num_samples=1
        )
        units[unit.structure] = UnitProfile(
            structure=unit.structure,
            kind=unit.kind,
            provider=PROVIDER,
            target=model.target,
            precision=model.precision,
            decode=(DecodePoint(context=0, batch=1, time=time_of),),
            prefill=(PrefillPoint(num_tokens=16, past=0, time=time_of),),
            resident_bytes=0,
        )
    devices = tuple(
        DeviceProfile(
            name=name,
            runtime="1",
            isa="any",
            threads=1,
            providers=(PROVIDER,),
            memory_bytes=memory_bytes,
            baseline_bytes=BASELINE_BYTES,
            workspace_bytes=0,
            step_overhead_seconds=0,
            units=tuple(units.values()),
        )
        for name in names
    )
    nothing = Timing(median_seconds=0, low_seconds=0, high_seconds=0, num_samples=1)
    links = tuple(
        LinkProfile(source=a, target=b, latency_seconds=0, bytes_per_second=1e9, time=nothing)
        for a in names
        for b in names
        if a != b
    )
    return Profile(models=(digest,), devices=devices, links=links)


def share(store: Store, model: ModelManifest, target: Path) -> None:
    """Give a device the model's blobs as links: the transfer is not what is measured."""
    there = Store(target)
    for blob in model.blobs():
        if not there.has(blob):
            os.link(store.path(blob), there.path(blob))


def run_chain(
    folder: Path,
    store: Store,
    name: str,
    num_stages: int,
    limit_mib: int,
    context: int,
    num_tokens: int,
) -> Run:
    """Plan, deploy and generate once to warm up and once to measure."""
    model, blob = store.model(name)
    sizes = {b.digest: b.size_bytes for unit in model.units for b in unit.weights}
    kv = model.num_blocks * model.kv.bytes_per_token() * context
    # A tenth more than an equal share, since blocks differ: no fewer stages can hold the model.
    planned = int(1.1 * (sum(sizes.values()) + kv) / num_stages) + BASELINE_BYTES
    with LocalCluster(folder, num_stages, memory_mib=limit_mib) as local:
        for device in local.names:
            share(store, model, local.store_path(device))
        profile = made_up(model, blob.digest, local.names, planned)
        plan = make_plan(model, blob.digest, profile, local.names[0], "latency", context, 1, 16)
        deploy(
            store,
            model,
            blob,
            plan,
            local.cluster,
            local.keys,
            fuse,
            silence_seconds=SILENCE_SECONDS,
        )
        with Client.connect(local.cluster_path, local.key_path) as client:
            for _ in range(2):
                with client.generate(
                    PROMPT, raw=True, max_tokens=num_tokens, temperature=0, ignore_eos=True
                ) as generation:
                    result = generation.finish()
        statuses = {device.name: device.status for device in survey(local.cluster, local.keys)}
    found = [statuses[stage.device] for stage in plan.stages]
    resident = [s.stage.resident_bytes // MIB for s in found if s is not None and s.stage]
    ranges = [(stage.start, stage.stop) for stage in plan.stages]
    weights = [
        sum({b.digest: b.size_bytes for u in model.units[a:z] for b in u.weights}.values()) // MIB
        for a, z in ranges
    ]
    return Run(
        num_stages=len(plan.stages),
        ranges=ranges,
        limit_mib=limit_mib,
        resident_mib=resident,
        weights_mib=weights,
        token_ids=list(result.token_ids),
        ms_per_token=statistics.median(result.token_seconds) * 1e3,
        first_token_seconds=result.first_token_seconds,
    )


def main() -> None:
    """Run every chain and print the comparison as JSON."""
    parser = argparse.ArgumentParser(description="Run a large model as one stage and as several.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--limit-mib", type=int, nargs="+", default=[6144, 2304])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    store = Store(arguments.store)
    model, _ = store.model(arguments.model)
    rate = bandwidth(arguments.threads)
    # A step reads every block and the head, and one row of the embedding.
    read = {b.digest: b.size_bytes for unit in model.units[1:] for b in unit.weights}
    limit_ms = sum(read.values()) / rate * 1e3
    runs = []
    for count, limit in zip(arguments.stages, arguments.limit_mib, strict=True):
        folder = arguments.work / f"{count}-stages"
        made = run_chain(
            folder, store, arguments.model, count, limit, arguments.context, arguments.tokens
        )
        runs.append(made)
        print(json.dumps(asdict(made)), flush=True)
    print(f"memory: {rate / 1e9:.1f} GB/s; reading the weights once: {limit_ms:.0f} ms")
    equal = all(made.token_ids == runs[0].token_ids for made in runs)
    print(f"tokens identical: {equal}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

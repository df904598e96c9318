r"""Compile some layers of a large shape, measure their units here, and plan the whole model.

A block of such a model costs what any other costs, so a few layers say what all of them need: the
first agent measures one unit of each structure, a second one gives the link, and the plan is made
for as many equal devices as are asked for. Printed: what was measured for a unit, and the plan.

Example:
    python benchmarks/make_checkpoint.py --size 70b --layers 2 --out build/llama2-70b-2
    python benchmarks/plan_scale.py --checkpoint build/llama2-70b-2 --blocks 80 --devices 8 \
        --memory-mib 6144 --work build/plan-70b
"""

from __future__ import annotations

import argparse
import hashlib
import time
from itertools import permutations
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.planner import make_plan
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.profile_cluster import profile_cluster
from edgeshard.schemas import files
from edgeshard.schemas.common import Blob, changed
from edgeshard.schemas.model import ModelManifest, Unit
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile

MIB = 2**20


def whole_model(model: ModelManifest, num_blocks: int) -> ModelManifest:
    """The manifest of so many blocks like those that there are, in turns.

    int4 keeps a few matrices in 8 bits, so that blocks differ; in turns, the whole model has the
    same share of each kind.
    """
    blocks = model.units[1:-1]
    copies = (_copy(blocks[index % len(blocks)], index) for index in range(num_blocks))
    return changed(model, num_blocks=num_blocks, units=(model.units[0], *copies, model.units[-1]))


def _copy(block: Unit, index: int) -> Unit:
    """The block by another name, with weights of its own (the largest blob); tables are shared."""
    own = max(block.weights, key=lambda blob: blob.size_bytes)
    renamed = changed(own, digest=_digest(own, index))
    weights = tuple(renamed if blob == own else blob for blob in block.weights)
    return changed(block, name=f"block.{index}", weights=weights)


def _digest(blob: Blob, index: int) -> str:
    return f"sha256:{hashlib.sha256(f'{blob.digest} {index}'.encode()).hexdigest()}"


def fleet(measured: Profile, num_devices: int, memory_mib: int) -> Profile:
    """Devices like the first one that was measured, and links like its own."""
    device, link = measured.devices[0], measured.links[0]
    names = [f"device-{index}" for index in range(num_devices)]
    return changed(
        measured,
        devices=tuple(changed(device, name=n, memory_bytes=memory_mib * MIB) for n in names),
        links=tuple(changed(link, source=a, target=b) for a, b in permutations(names, 2)),
    )


def describe_units(profile: Profile) -> str:
    """What a unit takes at the longest context that was measured, in Markdown."""
    lines = ["| unit | ms a token | ms for a prompt of | resident MiB |", "|---|--:|--:|--:|"]
    for unit in profile.devices[0].units:
        alone = [point for point in unit.decode if point.batch == 1]
        decode = max(alone, key=lambda point: point.context)
        prefill = max(unit.prefill, key=lambda point: point.num_tokens)
        lines.append(
            f"| {unit.kind} | {decode.time.median_seconds * 1e3:.2f} (context {decode.context}) | "
            f"{prefill.time.median_seconds * 1e3:.0f} ({prefill.num_tokens} tokens) | "
            f"{unit.resident_bytes / MIB:.0f} |"
        )
    return "\n".join(lines)


def describe_plan(plan: Plan) -> str:
    """The stages in Markdown, and what a token takes."""
    lines = ["| stage | units | GiB of weights | GiB in all | of | ms a token |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for number, stage in enumerate(plan.stages):
        memory = stage.memory
        total = memory.baseline_bytes + memory.weights_bytes + memory.kv_bytes
        total += memory.workspace_bytes
        lines.append(
            f"| {number} | {stage.start}–{stage.stop} | {memory.weights_bytes / 2**30:.2f} | "
            f"{total / 2**30:.2f} | {memory.limit_bytes / 2**30:.2f} | "
            f"{stage.decode_seconds * 1e3:.0f} |"
        )
    lines.append(f"\n{plan.token_seconds * 1e3:.0f} ms a token, {plan.first_token_seconds:.1f} s")
    return "\n".join(lines)


def main() -> None:
    """Compile, measure, plan and print."""
    parser = argparse.ArgumentParser(description="Plan a large model from a few of its layers.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a few layers")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--blocks", type=int, required=True, help="of the whole model")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--memory-mib", type=int, required=True, help="of each device")
    parser.add_argument("--context", type=int, default=2048)
    arguments = parser.parse_args()
    store = Store(arguments.work / "store")
    started = time.perf_counter()
    compiled = compile_model(arguments.checkpoint, store, precision="int4")
    print(f"compiled in {time.perf_counter() - started:.0f} s")
    model, blob = compiled.manifest, compiled.blob
    started = time.perf_counter()
    with LocalCluster(arguments.work / "cluster", 2) as local:
        measured = profile_cluster(store, model, blob, local.cluster, local.keys)
    files.write(arguments.work / "profile.json", measured)
    print(f"two agents measured in {time.perf_counter() - started:.0f} s\n")
    print(describe_units(measured))
    profile = fleet(measured, arguments.devices, arguments.memory_mib)
    source = profile.devices[0].name
    whole = whole_model(model, arguments.blocks)
    started = time.perf_counter()
    plan = make_plan(whole, blob.digest, profile, source, "latency", arguments.context, 1)
    print(f"\nplanned in {time.perf_counter() - started:.2f} s\n")
    print(describe_plan(plan))


if __name__ == "__main__":
    main()

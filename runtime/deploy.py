"""Puts a plan into effect: send what devices lack, load every stage, start the coordinator.

    fuse ─► check agents ─► send blobs ─► stop what ran ─► load stages ─► coordinator, trace
            (each step on all devices at once; a step starts when the one before is done everywhere)

Rule: all or nothing. Where a stage cannot be loaded, the others are stopped again.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from edgeshard.artifacts.store import Store
from edgeshard.errors import EdgeShardError, InputError
from edgeshard.runtime import control
from edgeshard.runtime.agent_client import AgentClient
from edgeshard.runtime.channel import KeyPair, Network
from edgeshard.runtime.machine import cluster_digest
from edgeshard.runtime.remarks import Remarks
from edgeshard.runtime.schedule_limits import CHUNK_TOKENS, MIN_CHUNK_TOKENS, num_groups
from edgeshard.schemas.cluster import Cluster
from edgeshard.schemas.common import Activation, Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import copies_slots, view_for

LOAD_SECONDS = 600.0
START_SECONDS = 60.0

FuseStage = Callable[[Store, ModelManifest, Blob, int, int], tuple[ShardManifest, Blob]]
T = TypeVar("T")


@dataclass(frozen=True)
class DeployProgress:
    """What is being done for a device; `done_bytes` of `total_bytes` while blobs are sent."""

    device: str
    text: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class StageReport:
    """A stage that runs now."""

    device: str
    start: int
    stop: int
    resident_bytes: int
    load_seconds: float


@dataclass(frozen=True)
class Deployment:
    """A chain that takes requests, and the bytes that this took.

    Attributes:
        is_mixed: stages differ in provider, target, precision or ONNX Runtime version, and so in
            rounding.
        links: how hidden states travel from each stage to the next.
    """

    epoch: int
    stages: tuple[StageReport, ...]
    sent_bytes: int
    present_bytes: int
    is_mixed: bool = False
    links: tuple[Activation, ...] = ()

    @property
    def is_lossy(self) -> bool:
        """Whether hidden states are rounded between stages."""
        return any(link != "fp32" for link in self.links)


def deploy(
    store: Store,
    manifest: ModelManifest,
    model: Blob,
    plan: Plan,
    cluster: Cluster,
    keys: KeyPair,
    fuse_stage: FuseStage,
    *,
    others: Sequence[tuple[ModelManifest, Blob]] = (),
    on_progress: Callable[[DeployProgress], None] = lambda progress: None,
    drain_seconds: float = 0.0,
    silence_seconds: float = 30.0,
    chunk_tokens: int = CHUNK_TOKENS,
    beside_steps: int = 0,
    share_prompts: bool = False,
) -> Deployment:
    """Deploy a plan.

    Args:
        store: with the compiled model.
        manifest: of the model.
        model: the manifest's blob, which the plan was made for; where its stages differ in
            precision, of the first one's.
        plan: what to run where.
        cluster: the devices; the agents must have read the same file.
        keys: of an operator.
        fuse_stage: makes the shard of units `[start, stop)`.
        others: manifests of the stages that have another precision, with their blobs.
        on_progress: told what happens; called from several threads.
        drain_seconds: how long requests of an earlier deployment may take to finish.
        silence_seconds: how long a step may take before it counts as lost.
        chunk_tokens: prompt positions of a step at most.
        beside_steps: decode steps of others without a prompt chunk, behind each 256 positions of a
            prompt: more slow the others less, and the prompt more.
        share_prompts: a client's prompt may start with what another's left on the stages.

    Raises:
        InputError: plan, model and cluster do not fit together, or chunks are too small.
        LinkError: an agent does not answer.
        DeviceError: a device refused its stage, or the chain did not start.
        ArtifactError: a blob is missing or changed.
    """
    models = {blob.digest: (one, blob) for one, blob in ((manifest, model), *others)}
    _check(plan, model, cluster, set(models))
    if chunk_tokens < MIN_CHUNK_TOKENS:
        raise InputError(
            f"chunk_tokens is {chunk_tokens}, at least {MIN_CHUNK_TOKENS}: one token alone is "
            "rounded in another way than several"
        )
    if beside_steps < 0:
        raise InputError(f"beside_steps is {beside_steps}, at least 0")
    shards = [
        fuse_stage(store, view_for(one, stage.provider), blob, stage.start, stage.stop)
        for stage, (one, blob) in zip(
            plan.stages, (models[digest] for digest in plan.models), strict=True
        )
    ]
    kinds = zip(
        (stage.provider for stage in plan.stages), (one.kv for one, _ in shards), strict=True
    )
    copies = all(copies_slots(provider, kv.layout) for provider, kv in kinds)
    crew = _Crew(
        plan, cluster, keys, on_progress, chunk_tokens, beside_steps, share_prompts, copies
    )
    try:
        return crew.deploy(store, manifest, model, shards, drain_seconds, silence_seconds)
    finally:
        crew.close()


def _check(plan: Plan, model: Blob, cluster: Cluster, models: Set[str]) -> None:
    if plan.unsupported:
        raise InputError(
            f"the plan asks for {' and '.join(plan.unsupported)}, which no stage can do yet; "
            "plan again without"
        )
    if plan.model != model.digest:
        raise InputError(f"the plan is for model {plan.model}, the store's is {model.digest}")
    for index, digest in enumerate(plan.models):
        if digest not in models:
            raise InputError(
                f"stage {index} of the plan is of model {digest}, which the store does not have; "
                "compile it there, or plan again without it"
            )
    if plan.source != cluster.source:
        raise InputError(f"the plan's source is {plan.source}, the cluster's is {cluster.source}")
    names = [stage.device for stage in plan.stages]
    known = {device.name for device in cluster.devices}
    for name in names:
        if name not in known:
            raise InputError(f"the plan uses device {name}, which the cluster file does not have")
        if names.count(name) > 1:
            raise InputError(f"the plan gives {name} two stages; a device runs one: plan again")


class _Crew:
    """One connection to each device, and a thread for each."""

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        keys: KeyPair,
        on_progress: Callable[[DeployProgress], None],
        chunk_tokens: int,
        beside_steps: int,
        share_prompts: bool,
        copies: bool,
    ) -> None:
        self._plan = plan
        self._copies = copies
        self._share_prompts = share_prompts
        self._chunk_tokens = max(MIN_CHUNK_TOKENS, min(chunk_tokens, plan.context))
        self._beside_steps = beside_steps
        self._cluster = cluster
        self._progress = on_progress
        self._cancelled = threading.Event()
        self._network = Network(keys)
        self._agents = {
            device.name: AgentClient(self._network, device, self._cancelled)
            for device in cluster.devices
        }
        self._names = [stage.device for stage in plan.stages]
        self._threads = ThreadPoolExecutor(len(self._agents), thread_name_prefix="deploy")

    def close(self) -> None:
        self._cancelled.set()
        self._threads.shutdown(cancel_futures=True)
        for agent in self._agents.values():
            agent.close()
        self._network.close()

    def deploy(
        self,
        store: Store,
        manifest: ModelManifest,
        model: Blob,
        shards: Sequence[tuple[ShardManifest, Blob]],
        drain_seconds: float,
        silence_seconds: float,
    ) -> Deployment:
        needed = list(dict.fromkeys([*self._names, self._plan.source]))
        runtimes = dict(zip(needed, self._on_each(needed, self._greet), strict=True))
        is_mixed = self._is_mixed([shard for shard, _ in shards], runtimes)
        remarks = Remarks(is_mixed, self._plan.links, self._plan.depends_on_company)
        blobs = {name: self._blobs(name, manifest, model, shards) for name in needed}
        moved = self._on_each(needed, lambda name: self._send(name, store, blobs[name]))
        self._on_each(list(self._agents), lambda name: self._stop(name, needed, drain_seconds))
        epoch = secrets.randbits(62)
        try:
            loads = {
                load_name: self._load_request(index, epoch, shards[index][1])
                for index, load_name in enumerate(self._names)
            }
            loaded = self._on_each(self._names, lambda name: self._load(name, loads[name]))
            self._on_each(
                [self._plan.source],
                lambda name: self._start(name, epoch, model, silence_seconds, remarks),
            )
        except BaseException:
            self._stop_again(needed)
            raise
        stages = tuple(
            StageReport(
                stage.device, stage.start, stage.stop, report.resident_bytes, report.load_seconds
            )
            for stage, report in zip(self._plan.stages, loaded, strict=True)
        )
        return Deployment(
            epoch,
            stages,
            sum(sent for sent, _ in moved),
            sum(there for _, there in moved),
            is_mixed,
            self._plan.links,
        )

    def _is_mixed(self, shards: Sequence[ShardManifest], runtimes: Mapping[str, str]) -> bool:
        kinds = {
            (stage.provider, shard.target, shard.precision, runtimes[stage.device])
            for stage, shard in zip(self._plan.stages, shards, strict=True)
        }
        return len(kinds) > 1

    def _blobs(
        self,
        name: str,
        manifest: ModelManifest,
        model: Blob,
        shards: Sequence[tuple[ShardManifest, Blob]],
    ) -> list[Blob]:
        blobs: list[Blob] = []
        if name == self._plan.source:
            text = (model, manifest.tokenizer, manifest.chat_template)
            blobs += [blob for blob in text if blob is not None]
        if name in self._names:
            shard, shard_blob = shards[self._names.index(name)]
            blobs += [shard_blob, shard.graph, *shard.weights]
        return blobs

    def _load_request(self, index: int, epoch: int, shard: Blob) -> control.Load:
        plan, stage = self._plan, self._plan.stages[index]
        is_last = index + 1 == len(self._names)
        return control.Load(
            id=0,
            epoch=epoch,
            index=index,
            shard=shard,
            provider=stage.provider,
            previous=plan.source if index == 0 else self._names[index - 1],
            following=plan.source if is_last else self._names[index + 1],
            context=plan.context,
            slots=plan.slots,
            chunk_tokens=self._chunk_tokens,
            predicted_bytes=stage.memory.total_bytes,
            takes="fp32" if index == 0 else plan.links[index - 1],
            gives="fp32" if is_last else plan.links[index],
            ends=(self._names[0], self._names[-1]),
        )

    # What is done for one device, in its thread

    def _greet(self, name: str) -> str:
        """Check the device's cluster file; its ONNX Runtime version."""
        self._say(name, "asking its agent")
        status = self._agents[name].status()
        if status.cluster != cluster_digest(self._cluster):
            raise InputError(
                f"device {name} has read another cluster file than this one; copy this one there "
                "and start its agent again"
            )
        return status.onnxruntime

    def _send(self, name: str, store: Store, blobs: list[Blob]) -> tuple[int, int]:
        total = sum(blob.size_bytes for blob in dict.fromkeys(blobs))
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            self._progress(DeployProgress(name, "sending", done, total))

        sent, present = self._agents[name].send_blobs(store, blobs, on_bytes)
        self._say(name, f"{sent} bytes sent, {present} were there")
        return sent, present

    def _stop(self, name: str, needed: Sequence[str], drain_seconds: float) -> None:
        try:
            self._agents[name].stop(drain_seconds)
        except EdgeShardError as error:
            if name in needed:
                raise
            self._say(name, f"not used, not stopped: {error}")

    def _load(self, name: str, load: control.Load) -> control.Loaded:
        self._say(name, f"loading stage {load.index}")
        loaded = self._agents[name].load(load, LOAD_SECONDS, lambda text: self._say(name, text))
        self._say(name, f"stage {load.index} ready in {loaded.load_seconds:.1f} s")
        return loaded

    def _start(
        self, name: str, epoch: int, model: Blob, silence_seconds: float, remarks: Remarks
    ) -> None:
        start = control.StartCoordinator(
            id=0,
            epoch=epoch,
            model=model,
            devices=tuple(self._names),
            context=self._plan.context,
            slots=self._plan.slots,
            chunk_tokens=self._chunk_tokens,
            beside_steps=self._beside_steps,
            num_groups=num_groups(self._plan),
            silence_seconds=silence_seconds,
            copies_slots=self._copies,
            share_prompts=self._share_prompts,
            remarks=remarks,
        )
        self._agents[name].start_coordinator(
            start, START_SECONDS, lambda text: self._say(name, text)
        )

    def _stop_again(self, needed: Sequence[str]) -> None:
        self._cancelled.clear()
        with contextlib.suppress(EdgeShardError):  # the first error is the one to tell
            self._on_each(needed, lambda name: self._agents[name].stop())

    def _say(self, name: str, text: str) -> None:
        self._progress(DeployProgress(name, text))

    def _on_each(self, names: Sequence[str], work: Callable[[str], T]) -> list[T]:
        """Do something for several devices at once; the first error cancels the others."""
        errors: list[BaseException] = []

        def run(name: str) -> T:
            try:
                return work(name)
            except BaseException as error:
                errors.append(error)
                raise

        futures = [self._threads.submit(run, name) for name in names]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if errors or not all(future.done() for future in futures):
                self._cancelled.set()
            wait(futures)
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

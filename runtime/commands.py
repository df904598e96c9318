"""What an agent does with each command.

Rule: names are looked up in the agent's own cluster file. A command says which device, never which
address or key, so that no peer can send a stage's output to a place of its choice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from edgeshard.errors import DeviceError, EdgeShardError, InputError
from edgeshard.runtime import control, log, machine
from edgeshard.runtime.channel import BULK_MS
from edgeshard.runtime.child import Line
from edgeshard.runtime.coordinator_config import CoordinatorConfig, StagePeer
from edgeshard.runtime.links import MAX_PROBE_BYTES, measure_link
from edgeshard.runtime.stage_config import StageConfig
from edgeshard.runtime.tenant import Role, Task, Tenant
from edgeshard.runtime.uploads import Uploads
from edgeshard.schemas.shard import ShardManifest

if TYPE_CHECKING:
    from edgeshard.runtime.agent import Agent


class Commands:
    """The commands of one agent, and the children that they started."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._uploads = Uploads(agent.store)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self._stage: Tenant | None = None
        self._load: control.Load | None = None
        self._shard: ShardManifest | None = None
        self._coordinator: Tenant | None = None
        self._profile: Tenant | None = None

    def tenants(self) -> list[Tenant]:
        """The children, the coordinator first: it has the last word to clients."""
        everyone = (self._coordinator, self._profile, self._stage)
        return [tenant for tenant in everyone if tenant is not None]

    def tenants_by_role(self) -> dict[Role, Tenant]:
        """The children by what they are."""
        everyone: dict[Role, Tenant | None] = {
            "stage": self._stage,
            "coordinator": self._coordinator,
            "profiler": self._profile,
        }
        return {role: tenant for role, tenant in everyone.items() if tenant is not None}

    @property
    def is_idle(self) -> bool:
        """Whether no request runs here."""
        is_serving = self._coordinator is not None and not self._coordinator.has_ended
        return not is_serving and (self._stage is None or self._stage.open_slots == 0)

    def drain(self, reason: str) -> None:
        """Let requests that run finish, take none."""
        if self._coordinator is not None:
            self._coordinator.tell(Line(drain=reason))

    def forget_ended(self) -> None:
        """Drop children that are gone."""
        self._stage = self._coordinator = self._profile = None

    def close(self) -> None:
        """Drop unfinished uploads."""
        self._writer.shutdown(cancel_futures=True)
        self._uploads.close()

    def stage_view(self) -> control.StageView | None:
        """The stage as others see it."""
        tenant, load, shard = self._stage, self._load, self._shard
        if tenant is None or load is None or shard is None:
            return None
        return control.StageView(
            epoch=load.epoch,
            index=load.index,
            start=shard.start,
            stop=shard.stop,
            state=tenant.state,
            reason=tenant.reason[:2000],
            resident_bytes=tenant.resident_bytes,
            open_slots=tenant.open_slots,
        )

    def handle(
        self, request: control.Request, payload: memoryview | None, sender: str, task: Task
    ) -> None:
        """Do a command; answers through `task`, now or later.

        Raises:
            EdgeShardError: it cannot be done; the caller answers.
        """
        agent = self._agent
        match request:
            case control.Status():
                self._in_thread(agent.jobs, task, lambda: self._status(request.id))
            case control.Missing():
                missing = tuple(blob for blob in request.blobs if not agent.store.has(blob))
                task.reply(control.MissingReply(id=request.id, blobs=missing))
            case control.PutChunk():
                data = b"" if payload is None else bytes(payload)
                self._in_thread(self._writer, task, lambda: self._put(request, sender, data))
            case control.OpenEcho():
                self._open_echo(request)
                task.reply(control.Ok(id=request.id))
            case control.CloseEcho():
                agent.close_echo()
                task.reply(control.Ok(id=request.id))
            case control.MeasureLink():
                self._in_thread(agent.jobs, task, lambda: self._measure(request))
            case control.Stop():
                agent.close_echo()
                reason = f"{agent.device.name} is being stopped by an operator"
                agent.begin_stop(request.drain_seconds, reason, lambda: _ok(task))
            case control.RunProfile():
                self._run_profile(task, b"{}" if payload is None else bytes(payload))
            case control.Load():
                self._run_stage(request, task)
            case control.StartCoordinator():
                self._run_coordinator(request, task)
            case control.Ping():
                raise InputError("a ping is answered before")

    def _in_thread(
        self, threads: ThreadPoolExecutor, task: Task, work: Callable[[], control.Reply]
    ) -> None:
        def run() -> None:
            try:
                reply = work()
            except Exception as error:  # whatever goes wrong, whoever asked is to know
                failure = as_edgeshard_error(error)
                self._agent.post(lambda: task.refuse(failure))
            else:
                self._agent.post(lambda: _reply(task, reply))

        threads.submit(run)

    def _status(self, number: int) -> control.Reply:
        agent = self._agent
        runtime, providers = machine.onnx_runtime()
        tenant, coordinator = self._stage, self._coordinator
        return control.StatusReply(
            id=number,
            status=control.AgentStatus(
                name=agent.device.name,
                version=version("edgeshard"),
                cluster=agent.cluster_digest,
                onnxruntime=runtime,
                providers=agent.device.providers or providers,
                threads=agent.threads,
                free_bytes=machine.free_bytes(),
                limit_bytes=agent.limit_bytes,
                stage=self.stage_view(),
                coordinator="" if coordinator is None else coordinator.state,
                draining=agent.is_draining,
                pid=os.getpid(),
                stage_pid=0 if tenant is None or tenant.has_ended else tenant.pid,
                coordinator_pid=(
                    0 if coordinator is None or coordinator.has_ended else coordinator.pid
                ),
            ),
        )

    def _put(self, chunk: control.PutChunk, sender: str, data: bytes) -> control.Reply:
        self._uploads.put(sender, chunk.blob, chunk.offset, data)
        return control.Ok(id=chunk.id)

    def _open_echo(self, request: control.OpenEcho) -> None:
        agent = self._agent
        self._refuse_if_busy("link probes need the data port")
        agent.close_echo()
        listener = agent.network.listen(
            agent.endpoint(1),
            domain="data",
            admitted=[agent.device_of(request.sender).public_key],
            max_bytes=MAX_PROBE_BYTES,
            queue=64,
            silence_ms=BULK_MS,
        )
        agent.open_echo(listener)

    def _measure(self, request: control.MeasureLink) -> control.Reply:
        agent = self._agent
        target = agent.device_of(request.target)
        dialer = agent.network.dial(
            target.data_endpoint,
            target.public_key,
            max_bytes=MAX_PROBE_BYTES,
            queue=64,
            silence_ms=BULK_MS,
        )
        try:
            link = measure_link(
                dialer,
                agent.device.name,
                target.name,
                frame_bytes=request.frame_bytes,
                num_samples=request.num_samples,
            )
        finally:
            dialer.close()
        return control.LinkReply(id=request.id, link=link)

    def _refuse_if_busy(self, need: str) -> None:
        for tenant in self.tenants():
            if not tenant.has_ended:
                raise DeviceError(
                    f"{self._agent.device.name} runs {tenant.what}; {need}: stop it first"
                )

    def _run_profile(self, task: Task, spec: bytes) -> None:
        agent = self._agent
        self._refuse_if_busy("measuring needs the device alone")
        agent.store.sweep()
        try:
            plain = json.loads(spec)
        except ValueError as error:
            raise InputError(f"what to profile is not JSON: {error}") from error
        config = {
            "store": str(agent.store.root),
            "device": msgspec.to_builtins(agent.device),
            "threads": agent.threads,
            "memory_bytes": agent.limit_bytes or machine.free_bytes(),
            "spec": plain,
        }

        self._profile = Tenant(
            "a profile run",
            agent.config.profiler,
            json.dumps(config).encode(),
            task=task,
            post=agent.post,
            answer=_measured,
            is_job=True,
        )

    def _run_stage(self, load: control.Load, task: Task) -> None:
        agent = self._agent
        if self._stage is not None and not self._stage.has_ended:
            raise DeviceError(f"{agent.device.name} runs {self._stage.what}; stop it first")
        limit = agent.limit_bytes or machine.free_bytes()
        if load.predicted_bytes > limit:
            raise DeviceError(
                f"{agent.device.name} may hold {limit} bytes, the stage is predicted to hold "
                f"{load.predicted_bytes}: {load.predicted_bytes - limit} are missing; plan again"
            )
        agent.store.sweep()
        shard = agent.store.shard(load.shard)
        previous, following = agent.device_of(load.previous), agent.device_of(load.following)
        first, last = map(agent.device_of, load.ends)
        gives_first = shard.has_head and not shard.has_embedding  # a stage alone is its own first
        takes_last = shard.has_embedding and not shard.has_head
        config = StageConfig(
            store=str(agent.store.root),
            shard=shard,
            key=agent.config.key,
            epoch=load.epoch,
            index=load.index,
            provider=load.provider,
            threads=agent.threads,
            cores=agent.device.cores,
            context=load.context,
            slots=load.slots,
            chunk_tokens=load.chunk_tokens,
            listen=agent.endpoint(1),
            previous_key=previous.public_key,
            next_endpoint=(
                following.return_endpoint if shard.has_head else following.data_endpoint
            ),
            next_key=following.public_key,
            last_key=last.public_key if takes_last else None,
            first_endpoint=first.data_endpoint if gives_first else None,
            first_key=first.public_key if gives_first else "",
            takes=load.takes,
            gives=load.gives,
            tells_figures=agent.config.metrics is not None,
        )
        agent.close_echo()
        self._load, self._shard = load, shard
        self._stage = Tenant(
            f"stage {load.index} on {agent.device.name}",
            agent.config.worker,
            msgspec.json.encode(config),
            task=task,
            post=agent.post,
            answer=_loaded,
            on_change=agent.announce,
            limit_bytes=limit,
        )

    def _run_coordinator(self, start: control.StartCoordinator, task: Task) -> None:
        agent = self._agent
        if agent.device.name != agent.cluster.source:
            raise InputError(f"{agent.device.name} is not the source, {agent.cluster.source} is")
        if self._coordinator is not None and not self._coordinator.has_ended:
            raise DeviceError(f"{agent.device.name} runs a coordinator; stop it first")
        devices = [agent.device_of(name) for name in start.devices]
        config = CoordinatorConfig(
            store=str(agent.store.root),
            model=start.model,
            key=agent.config.key,
            epoch=start.epoch,
            stages=tuple(
                StagePeer(device.name, device.control_endpoint, device.public_key)
                for device in devices
            ),
            first_endpoint=devices[0].data_endpoint,
            listen_return=agent.endpoint(2),
            listen_clients=agent.endpoint(3),
            client_keys=agent.cluster.clients + agent.cluster.operators,
            context=start.context,
            slots=start.slots,
            chunk_tokens=start.chunk_tokens,
            beside_steps=start.beside_steps,
            max_waiting=start.max_waiting,
            num_groups=start.num_groups,
            silence_seconds=start.silence_seconds,
            copies_slots=start.copies_slots,
            share_prompts=start.share_prompts,
            remarks=start.remarks,
            tells_figures=agent.config.metrics is not None,
        )
        self._coordinator = Tenant(
            f"the coordinator on {agent.device.name}",
            agent.config.coordinator,
            msgspec.json.encode(config),
            task=task,
            post=agent.post,
            answer=_started,
        )


def as_edgeshard_error(error: Exception) -> EdgeShardError:
    """The error itself, or one that says what went wrong inside."""
    if isinstance(error, EdgeShardError):
        return error
    log.warn("internal.error", f"internal error: {error!r}")
    return DeviceError(f"{type(error).__name__}: {error}")


def _ok(task: Task) -> None:
    task.reply(control.Ok(id=task.id))


def _reply(task: Task, reply: control.Reply) -> None:
    task.reply(reply)


def _loaded(number: int, line: Line) -> tuple[control.Reply, bytes | None] | None:
    if line.ready is None:
        return None
    ready = line.ready
    loaded = control.Loaded(
        id=number, resident_bytes=ready.resident_bytes, load_seconds=ready.load_seconds
    )
    return loaded, None


def _measured(number: int, line: Line) -> tuple[control.Reply, bytes | None] | None:
    if line.result is None:
        return None
    return control.Ok(id=number), msgspec.json.encode(line.result)


def _started(number: int, line: Line) -> tuple[control.Reply, bytes | None] | None:
    return None if line.ready is None else (control.Ok(id=number), None)

"""The daemon on a device: takes commands, runs a stage, and on the source the coordinator.

    operators ─┐                   ┌─ worker        (stage)
               ├─ ROUTER ─ Agent ──┼─ coordinator   (source only)
    source ────┘                   └─ profiler      (while profiling)

Rule: the loop never waits for a command. Children and threads do the work and post what they have
to say to the loop, so that a ping is answered whatever else runs. Why the agent binds, and not who
commands it: docs/adr/0003-agents-bind-control.md.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeshard.artifacts.store import Store
from edgeshard.errors import DeviceError, EdgeShardError, InputError
from edgeshard.runtime import control, log
from edgeshard.runtime.channel import BULK_MS, Arrival, Listener, Network, Poller
from edgeshard.runtime.child import Line, Parent, Ready
from edgeshard.runtime.commands import Commands, as_edgeshard_error
from edgeshard.runtime.keys import load_keys
from edgeshard.runtime.links import answer_probe
from edgeshard.runtime.machine import cluster_digest, physical_cores
from edgeshard.runtime.tenant import Task
from edgeshard.runtime.waker import Waker
from edgeshard.runtime.wire import ProtocolError, encode, split
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster, Device
from edgeshard.system import core_numbers

if TYPE_CHECKING:
    from edgeshard.runtime.metrics import MetricsServer

TURN_SECONDS = 0.25
WATCHED_SECONDS = 10.0
CHILD_SECONDS = 2.0
LAST_WORDS_SECONDS = 0.2
QUIET = (control.Status, control.Missing, control.PutChunk)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent is started with; paths, never secrets.

    Attributes:
        bind_address: address to listen at where it is not the one that the others reach.
        drain_seconds: how long running requests may take to finish on SIGTERM.
        metrics: address and port to serve metrics at; None: nowhere.
        metrics_beyond_loopback: that address may be one that other machines reach.
        worker, coordinator, profiler: modules of the children; a test puts its own here.
    """

    cluster: str
    name: str
    key: str
    store: str
    bind_address: str | None = None
    drain_seconds: float = 10.0
    metrics: str | None = None
    metrics_beyond_loopback: bool = False
    worker: str = "edgeshard.runtime.worker"
    coordinator: str = "edgeshard.runtime.coordinator_process"
    profiler: str = "edgeshard.runtime.profiler"


class Agent:
    """One device's daemon."""

    def __init__(self, config: AgentConfig) -> None:
        """Read the files and bind the control port.

        Raises:
            InputError: the cluster file has no such device, or the key is another device's.
            DeviceError: the port is in use.
        """
        self.config = config
        self.cluster = files.read(Path(config.cluster), Cluster)
        self.device = self.device_of(config.name)
        self.source = self.device_of(self.cluster.source)
        keys = load_keys(Path(config.key))
        if keys.public != self.device.public_key:
            raise InputError(
                f"key {config.key} is not that of {config.name}: its public key is {keys.public}, "
                f"{config.cluster} has {self.device.public_key}"
            )
        self._check_cores()
        self.cluster_digest = cluster_digest(self.cluster)
        self.store = Store(Path(config.store))
        self.network = Network(keys)
        self.waker = Waker()
        self.posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.jobs = ThreadPoolExecutor(max_workers=4, thread_name_prefix="job")
        self._echo: Listener | None = None
        self._watchers: dict[bytes, float] = {}
        self._draining = ""
        self._stop_at: float | None = None
        self._then: list[Callable[[], None]] = []
        self._is_ending = False
        self._is_stopping = False
        self._num_signals = 0
        self._is_over = False
        try:
            self._control = self.network.listen(
                self.endpoint(0),
                domain="control",
                admitted=[*self.cluster.operators, self.source.public_key],
                max_bytes=control.MAX_CONTROL_BYTES,
                queue=control.QUEUE,
                silence_ms=BULK_MS,
            )
        except EdgeShardError:
            self.network.close()
            self.waker.close()
            raise
        self._poller = Poller(self.waker, self._control)
        self._commands = Commands(self)
        try:
            self._metrics = self._serve_metrics()
        except EdgeShardError:
            self._commands.close()
            self.network.close()
            self.waker.close()
            raise

    def _serve_metrics(self) -> MetricsServer | None:
        if self.config.metrics is None:
            return None
        from edgeshard.runtime.metrics import AgentCollector, MetricsServer

        place = self.config.metrics
        collector = AgentCollector(self.device.name, self._commands.tenants_by_role)
        return MetricsServer(place, self.config.metrics_beyond_loopback, collector)

    def device_of(self, name: str) -> Device:
        """A device of our own cluster file.

        Raises:
            InputError: there is none of that name.
        """
        try:
            return self.cluster.device(name)
        except KeyError:
            known = ", ".join(device.name for device in self.cluster.devices)
            raise InputError(
                f"no device {name!r} in {self.config.cluster}; it has {known}"
            ) from None

    def endpoint(self, offset: int) -> str:
        """Where to bind the port `offset` above the first."""
        if self.config.bind_address is None:
            return self.device.endpoint(offset)
        return msgspec.structs.replace(self.device, address=self.config.bind_address).endpoint(
            offset
        )

    def _check_cores(self) -> None:
        device, known = self.device, core_numbers()
        if device.threads is not None and device.cores and device.threads != len(device.cores):
            raise InputError(
                f"{device.name} has threads = {device.threads} and {len(device.cores)} cores in "
                f"{self.config.cluster}; a thread is pinned to each core: leave threads out"
            )
        missing = sorted(set(device.cores) - known)
        if missing or len(set(device.cores)) < len(device.cores):
            raise InputError(
                f"{device.name} is to use cores {', '.join(map(str, device.cores))}; "
                + (
                    f"it may use {', '.join(map(str, sorted(known)))}, each once"
                    if known
                    else "this system cannot pin threads: leave cores out"
                )
            )

    @property
    def threads(self) -> int:
        """Threads of a stage here."""
        return self.device.threads or len(self.device.cores) or physical_cores()

    @property
    def limit_bytes(self) -> int | None:
        """Most that a stage may hold here; None: what is free."""
        mib = self.device.memory_mib
        return None if mib is None else mib * 2**20

    @property
    def is_draining(self) -> bool:
        """Whether everything here is about to stop."""
        return bool(self._draining)

    # What other threads may call

    def post(self, function: Callable[[], None]) -> None:
        """Run a function in the loop."""
        self.posts.put(function)
        self.waker.wake()

    def interrupt(self) -> None:
        """First: drain, then end. Second: end now."""
        self._num_signals += 1
        self.waker.wake()

    def end_now(self) -> None:
        """End without draining."""
        self._num_signals = max(self._num_signals, 2)
        self.waker.wake()

    # The loop

    def run(self) -> None:
        """Serve until told to end; leaves no child behind."""
        log.note("agent.started", f"{self.device.name} takes commands")
        try:
            while not self._is_over:
                ready = self._poller.wait(TURN_SECONDS)
                if self.waker in ready:
                    self.waker.clear()
                while not self.posts.empty():
                    self.posts.get()()
                if self._control in ready:
                    self._take_requests()
                if self._echo is not None and self._echo in ready:
                    while (arrival := self._echo.receive()) is not None:
                        answer_probe(self._echo, arrival)
                self._tick(time.monotonic())
        finally:
            log.note("agent.ends", f"{self.device.name} is stopping")
            for tenant in self._commands.tenants():
                tenant.stop(CHILD_SECONDS)
            self.jobs.shutdown(cancel_futures=True)
            self._commands.close()
            if self._metrics is not None:
                self._metrics.close()
            self.network.close(LAST_WORDS_SECONDS)
            self.waker.close()

    def _tick(self, now: float) -> None:
        for tenant in self._commands.tenants():
            tenant.check_budget()
        if self._num_signals and not self._is_ending:
            self._is_ending = True
            self.begin_stop(self.config.drain_seconds, f"{self.device.name} is stopping", self._end)
        if self._stop_at is None or self._is_stopping:
            return
        if self._num_signals > 1 or now >= self._stop_at or self._commands.is_idle:
            self._is_stopping = True
            self.jobs.submit(self._stop_children)

    def _end(self) -> None:
        self._is_over = True

    def begin_stop(self, drain_seconds: float, reason: str, then: Callable[[], None]) -> None:
        """Let requests finish for `drain_seconds`, stop all children, then call `then`."""
        self._draining = reason
        self._stop_at = time.monotonic() + drain_seconds
        self._then.append(then)
        if drain_seconds > 0:
            self._commands.drain(reason)
        self.announce()

    def _stop_children(self) -> None:
        for tenant in self._commands.tenants():
            tenant.stop(CHILD_SECONDS)
        self.post(self._stopped)

    def _stopped(self) -> None:
        self._draining, self._stop_at, self._is_stopping = "", None, False
        self._commands.forget_ended()
        self.announce()
        waiting, self._then = self._then, []
        for then in waiting:
            then()

    # Echo for link probes

    def open_echo(self, listener: Listener) -> None:
        """Answer probes that come to a listener."""
        self.close_echo()
        self._echo = listener
        self._poller.watch(listener)

    def close_echo(self) -> None:
        """Stop answering probes."""
        if self._echo is not None:
            self._poller.watch(self._echo, readable=False)
            self._echo.close()
            self._echo = None

    # Requests

    def announce(self) -> None:
        """Tell everyone who pinged lately how the stage is."""
        now = time.monotonic()
        for peer, last in list(self._watchers.items()):
            if now - last > WATCHED_SECONDS or not self._send(peer, self._pong(0)):
                del self._watchers[peer]

    def _pong(self, number: int) -> control.Pong:
        return control.Pong(
            id=number,
            stage=self._commands.stage_view(),
            draining=self.is_draining,
            clock_seconds=time.perf_counter(),
        )

    def _send(self, peer: bytes, reply: control.Reply, payload: bytes | None = None) -> bool:
        header = encode(reply)
        return self._control.send(peer, [header] if payload is None else [header, payload])

    def _take_requests(self) -> None:
        while (arrival := self._control.receive()) is not None:
            self._take(arrival)

    def _take(self, arrival: Arrival) -> None:
        number = 0
        task = Task(0, lambda reply, payload: self._send(arrival.peer, reply, payload))
        try:
            header, payload = split(arrival.frames)
            request = control.request_codec.decode(header)
            number = request.id
            if isinstance(request, control.Ping):
                self._watchers[arrival.peer] = time.monotonic()
                self._send(arrival.peer, self._pong(number))
                return
            is_operator = arrival.key in self.cluster.operators
            if not is_operator and not isinstance(request, control.ASKING):
                raise DeviceError(f"{type(request).__name__} is for operators only")
            task = Task(number, task.send)
            if not isinstance(request, QUIET):
                kind = type(request).__name__
                log.note("command", f"{kind} is asked for", command=kind)
            self._commands.handle(request, payload, arrival.key, task)
        except ProtocolError as error:
            log.warn("control.refused", f"a control message was refused: {error}")
            task.refuse(error)
        except Exception as error:  # one bad command must not end the daemon
            task.refuse(as_edgeshard_error(error))


def run_agent(config: AgentConfig, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run an agent in this thread until SIGTERM or Ctrl-C.

    Raises:
        InputError: see `Agent`.
        DeviceError: see `Agent`.
    """
    log.set_up("agent", device=config.name)
    agent = Agent(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.interrupt())
    on_ready()
    agent.run()


def run_child_agent() -> int:
    """An agent as a child process: its config on standard input, whose end stops it."""
    parent = Parent()
    try:
        config = parent.config(AgentConfig)
        log.set_up("agent", device=config.name)
        agent = Agent(config)
    except EdgeShardError as error:
        parent.fail(error)
        return error.exit_code
    signal.signal(signal.SIGTERM, lambda *_: agent.interrupt())
    parent.follow(lambda line: None, agent.end_now)
    parent.tell(Line(progress=f"pid {os.getpid()}"))
    parent.tell(Line(ready=Ready()))
    agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(run_child_agent())

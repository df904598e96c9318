"""A cluster of agents on this machine, each a process with a key and a store of its own.

    FOLDER/keys/…  FOLDER/cluster.toml  FOLDER/NAME/store/  FOLDER/NAME.log

Rule: leaving the block, in whatever way, leaves no process behind.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from edgeshard.errors import DeviceError, EdgeShardError
from edgeshard.runtime.agent import AgentConfig
from edgeshard.runtime.channel import KeyPair
from edgeshard.runtime.child import Child, Line, describe_exit
from edgeshard.runtime.keys import load_keys, make_keys
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster

START_SECONDS = 30.0
STOP_SECONDS = 8.0
PORTS_PER_DEVICE = 4
OPERATOR = "operator"


class LocalAgent:
    """One agent as a child process."""

    def __init__(self, config: AgentConfig, log: Path, python: str = sys.executable) -> None:
        self.name = config.name
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._error: EdgeShardError | None = None
        with log.open("ab") as file:
            self._child = Child(
                "edgeshard.runtime.agent",
                msgspec.json.encode(config),
                self._on_line,
                self._on_exit,
                stderr=file.fileno(),
                python=python,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def wait_ready(self) -> None:
        """Wait until it listens.

        Raises:
            EdgeShardError: why it does not.
        """
        if not self._ready.wait(START_SECONDS) and self._error is None:
            self._error = DeviceError(
                f"agent {self.name} did not start within {START_SECONDS:.0f} s"
            )
        if self._error is not None:
            raise self._error

    def terminate(self) -> None:
        """SIGTERM: it drains, then ends."""
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.pid).terminate()

    def wait_ended(self, seconds: float) -> bool:
        """Wait until it is gone."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """End it at once, with its children."""
        self._child.end_input(STOP_SECONDS)

    def _on_line(self, line: Line) -> None:
        self._error = self._error or line.failure()
        if line.ready is not None or self._error is not None:
            self._ready.set()

    def _on_exit(self, code: int) -> None:
        if not self._ready.is_set():
            self._error = self._error or DeviceError(f"agent {self.name} {describe_exit(code)}")
        self._ended.set()
        self._ready.set()


class LocalCluster:
    """Agents on loopback; device 0 is the source."""

    def __init__(
        self,
        folder: Path,
        num_devices: int = 3,
        *,
        memory_mib: int | Sequence[int] | None = None,
        threads: int | None = None,
        cores: Sequence[int] = (),
        base_port: int | None = None,
        worker: str | None = None,
        profiler: str | None = None,
        drain_seconds: float = 10.0,
        pythons: Mapping[str, str] | None = None,
        metrics: bool = False,
    ) -> None:
        """Make keys and the cluster file where they are missing; start with `with`.

        Args:
            folder: where everything lies; kept, so that a second run finds its stores.
            num_devices: agents.
            memory_mib: budget of each device's stage; one for all, or one each.
            threads: of each stage; None: the physical cores.
            cores: that every stage is pinned to; empty: none.
            base_port: first of four ports for each device; None: free ones.
            worker: module that stages run; None: the real one.
            profiler: module that profile runs use; None: the real one.
            drain_seconds: how long requests may take to finish on SIGTERM.
            pythons: interpreters by device, where an agent runs from another environment.
            metrics: let each agent serve its own, at `metrics_places`.
        """
        self.folder = folder
        self.cluster_path = folder / "cluster.toml"
        self.key_path = folder / "keys" / f"{OPERATOR}.secret"
        self.names = [f"device-{index}" for index in range(num_devices)]
        folder.mkdir(parents=True, exist_ok=True)
        keys = {name: self._keys(name) for name in (*self.names, OPERATOR)}
        first = free_ports(num_devices * PORTS_PER_DEVICE) if base_port is None else base_port
        budgets = (
            list(memory_mib) if isinstance(memory_mib, Sequence) else [memory_mib] * num_devices
        )
        text = cluster_text(keys, self.names, first, budgets, threads, cores)
        self.cluster_path.write_text(text, encoding="utf-8")
        self.cluster = files.read(self.cluster_path, Cluster)
        self.keys = keys[OPERATOR]
        self.agents: list[LocalAgent] = []
        self._pythons = dict(pythons or {})
        self.metrics_places: list[str] = []
        if metrics:
            port = free_ports(num_devices)
            self.metrics_places = [f"127.0.0.1:{port + index}" for index in range(num_devices)]
        defaults = AgentConfig(cluster="", name="", key="", store="")
        self._configs = [
            AgentConfig(
                cluster=str(self.cluster_path.resolve()),
                name=name,
                key=str((folder / "keys" / f"{name}.secret").resolve()),
                store=str((folder / name / "store").resolve()),
                worker=worker or defaults.worker,
                profiler=profiler or defaults.profiler,
                drain_seconds=drain_seconds,
                metrics=self.metrics_places[index] if metrics else None,
            )
            for index, name in enumerate(self.names)
        ]

    def _agent(self, config: AgentConfig) -> LocalAgent:
        python = self._pythons.get(config.name, sys.executable)
        return LocalAgent(config, self.folder / f"{config.name}.log", python)

    def store_path(self, name: str) -> Path:
        """Where a device's store lies."""
        return self.folder / name / "store"

    def __enter__(self) -> LocalCluster:
        """Start every agent and wait until all listen.

        Raises:
            EdgeShardError: one does not.
        """
        try:
            for config in self._configs:
                self.agents.append(self._agent(config))
            for agent in self.agents:
                agent.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every agent and its children, all at once."""
        threads = [threading.Thread(target=agent.stop) for agent in self.agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * STOP_SECONDS)
        self.agents.clear()

    def _keys(self, name: str) -> KeyPair:
        folder = self.folder / "keys"
        path = folder / f"{name}.secret"
        return load_keys(path) if path.exists() else make_keys(folder, name)


def cluster_text(
    keys: dict[str, KeyPair],
    names: list[str],
    first_port: int,
    memory_mib: Sequence[int | None],
    threads: int | None,
    cores: Sequence[int] = (),
) -> str:
    """The text of a cluster file for devices on loopback."""
    lines = [
        "# Written anew at every start of a cluster on this machine.",
        'format = "edgeshard.cluster/1"',
        f'source = "{names[0]}"',
        f'operators = ["{keys[OPERATOR].public}"]',
    ]
    for index, name in enumerate(names):
        lines += [
            "",
            "[[devices]]",
            f'name = "{name}"',
            'address = "127.0.0.1"',
            f"port = {first_port + index * PORTS_PER_DEVICE}",
            f'public_key = "{keys[name].public}"',
        ]
        lines += [] if memory_mib[index] is None else [f"memory_mib = {memory_mib[index]}"]
        lines += [] if threads is None else [f"threads = {threads}"]
        lines += [f"cores = {list(cores)}"] if cores else []
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports of loopback that are free now.

    Raises:
        DeviceError: none were found.
    """
    for _ in range(100):
        first = random.randrange(15000, 32000 - count)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise DeviceError(f"no {count} neighbouring free ports between 15000 and 32000; name a base")

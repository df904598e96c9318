"""Hosts on one Linux machine: network namespaces with an address each, behind one switch.

    switch namespace:  br0 ── port-laptop, port-desktop, port-operator, …
    each host:         lo, eth0 10.77.0.N/24, a folder and a clock of its own

Rule: everything lies in namespaces whose names begin with our process id, nothing of the machine's
own network is touched, and leaving the block ends every process in them and removes them. Needs
root, iproute2 and time namespaces (Linux 5.6, `unshare --time`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
END_SECONDS = 15.0
CLOCK_STEP = 12_345  # seconds between the clocks of two hosts


@dataclass
class Host:
    """A machine as far as its network, its folder and its monotonic clock go."""

    name: str
    namespace: str
    address: str
    folder: Path
    clock_seconds: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self, *words: str | Path, limit_seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host, in its folder, and wait for it."""
        return subprocess.run(
            self._inside(words),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            check=False,
        )

    def start(self, log: str, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a command on this host; its output goes to a file of the host's folder."""
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                self._inside(words),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def _inside(self, words: Sequence[str | Path]) -> list[str]:
        clock = ["unshare", "--time", "--monotonic", str(self.clock_seconds)]
        return ["ip", "netns", "exec", self.namespace, *clock, *map(str, words)]


class Lab:
    """Hosts behind a switch; use with `with`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Name the hosts; each gets `folder/NAME`."""
        prefix = f"esc-{os.getpid()}"
        self._switch = f"{prefix}-switch"
        self.hosts = {
            name: Host(
                name, f"{prefix}-{name}", f"{NETWORK}.{number}", folder / name, number * CLOCK_STEP
            )
            for number, name in enumerate(names, 1)
        }
        self._made: list[str] = []

    def __enter__(self) -> Lab:
        """Make namespaces, links and folders.

        Raises:
            SystemExit: this machine or user cannot.
        """
        try:
            self._add(self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "br0", "up")
            for host in self.hosts.values():
                host.folder.mkdir(parents=True, exist_ok=True)
                self._connect(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, namespace: str) -> None:
        _ip("netns", "add", namespace)
        self._made.append(namespace)

    def _connect(self, host: Host) -> None:
        self._add(host.namespace)
        port = f"p-{host.name}"[:15]
        peer = ("peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", *peer)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", device, "up")

    def shape(self, name: str, megabits: int) -> None:
        """Let a host send and receive no faster than so many Mbit/s."""
        port = f"p-{name}"[:15]
        for namespace, device in ((self.hosts[name].namespace, "eth0"), (self._switch, port)):
            rate = ("rate", f"{megabits}mbit", "burst", "64kb", "latency", "50ms")
            _call("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *rate)

    def cut(self, name: str) -> None:
        """Let nothing reach a host or leave it any more, without a word to anybody."""
        _ip("-n", self._switch, "link", "set", f"p-{name}"[:15], "nomaster")

    def mend(self, name: str) -> None:
        """Undo a cut."""
        _ip("-n", self._switch, "link", "set", f"p-{name}"[:15], "master", "br0")

    def processes(self) -> list[int]:
        """Ids of everything that runs on the hosts."""
        found: list[int] = []
        for namespace in self._made:
            done = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            )
            found += map(int, done.stdout.split())
        return found

    def close(self) -> None:
        """End what runs on the hosts, and remove them."""
        for host in self.hosts.values():
            for process in host.started:
                if process.poll() is None:
                    process.terminate()
        deadline = time.monotonic() + END_SECONDS
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in self.processes():  # they are in namespaces that we made
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for host in self.hosts.values():
            for process in host.started:
                process.wait(END_SECONDS)
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], check=False)


def _ip(*words: str) -> None:
    _call("ip", *words)


def _call(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is missing: install iproute2") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()} (root is needed)")

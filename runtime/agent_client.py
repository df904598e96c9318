"""An operator's side of one agent: send a command, wait for its reply.

Rule: every wait has a limit. While a long command runs the agent is pinged, so that one that is
gone is noticed within seconds, and one that works may take as long as the command's own limit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

import msgspec

from edgeshard.artifacts.store import Store
from edgeshard.errors import DeviceError, LinkError
from edgeshard.runtime import control
from edgeshard.runtime.channel import BULK_MS, Network
from edgeshard.runtime.wire import encode, split
from edgeshard.schemas.cluster import Device
from edgeshard.schemas.common import Blob
from edgeshard.schemas.profile import LinkProfile

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 6.0
PING_SECONDS = 1.0
WINDOW_CHUNKS = 8
LEAST_CHUNK_BYTES = 64 * 1024
SOON_SECONDS, LATE_SECONDS = 0.2, 1.0
QUICK_SECONDS = 70.0  # the first status starts ONNX Runtime, which is slow on small devices

OnProgress = Callable[[str], None]
Numbered = TypeVar("Numbered", control.Load, control.StartCoordinator)
Expected = TypeVar("Expected", bound=control.Control)


def ignore(_: object) -> None:
    """Take no notice of progress."""


class AgentClient:
    """One connection to one agent. Not for several threads at once."""

    def __init__(
        self, network: Network, device: Device, cancelled: threading.Event | None = None
    ) -> None:
        """Dial.

        Args:
            network: with an operator's keys.
            device: whose agent.
            cancelled: ends every wait with an error once it is set.
        """
        self.device = device
        self._cancelled = cancelled or threading.Event()
        self._dialer = network.dial(
            device.control_endpoint,
            device.public_key,
            max_bytes=control.MAX_CONTROL_BYTES,
            queue=control.QUEUE,
            silence_ms=BULK_MS,
        )
        self._is_connected = False
        self._next_id = 1
        self._chunk_bytes = LEAST_CHUNK_BYTES

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._dialer.close()

    # Commands

    def status(self) -> control.AgentStatus:
        """What the agent is and runs.

        Raises:
            LinkError: it does not answer.
        """
        reply, _ = self._call(control.Status(id=self._number()), QUICK_SECONDS)
        return _expect(reply, control.StatusReply).status

    def missing(self, blobs: Iterable[Blob]) -> list[Blob]:
        """Which blobs its store lacks."""
        request = control.Missing(id=self._number(), blobs=tuple(blobs))
        reply, _ = self._call(request, QUICK_SECONDS)
        return list(_expect(reply, control.MissingReply).blobs)

    def send_blobs(
        self,
        store: Store,
        blobs: Iterable[Blob],
        on_bytes: Callable[[int], None] = ignore,
    ) -> tuple[int, int]:
        """Send the blobs that it lacks.

        Args:
            store: where they lie here.
            blobs: what it is to have.
            on_bytes: told how many more bytes have arrived.

        Returns:
            Bytes that were sent, and bytes that were there already.

        Raises:
            ArtifactError: a blob is missing or changed, here or on arrival.
        """
        wanted = list(dict.fromkeys(blobs))
        missing = self.missing(wanted)
        for blob in missing:
            self._send_blob(store, blob, on_bytes)
        sent = sum(blob.size_bytes for blob in missing)
        return sent, sum(blob.size_bytes for blob in wanted) - sent

    def profile(self, spec: bytes, limit_seconds: float, on_progress: OnProgress = ignore) -> bytes:
        """Run the profiler there; JSON in, JSON out."""
        request = control.RunProfile(id=self._number())
        reply, payload = self._call(request, limit_seconds, on_progress, spec)
        _expect(reply, control.Ok)
        return payload or b""

    def measure_link(
        self, receiver: AgentClient, *, frame_bytes: int, num_samples: int = 50
    ) -> LinkProfile:
        """Measure the way from this agent's device to another's."""
        receiver.open_echo(self.device.name)
        try:
            request = control.MeasureLink(
                id=self._number(),
                target=receiver.device.name,
                frame_bytes=frame_bytes,
                num_samples=num_samples,
            )
            reply, _ = self._call(request, QUICK_SECONDS)
            return _expect(reply, control.LinkReply).link
        finally:
            receiver.close_echo()

    def open_echo(self, sender: str) -> None:
        """Let it answer link probes of a device."""
        request = control.OpenEcho(id=self._number(), sender=sender)
        _expect(self._call(request, QUICK_SECONDS)[0], control.Ok)

    def close_echo(self) -> None:
        """Let it stop answering link probes."""
        _expect(self._call(control.CloseEcho(id=self._number()), QUICK_SECONDS)[0], control.Ok)

    def load(
        self, load: control.Load, limit_seconds: float, on_progress: OnProgress = ignore
    ) -> control.Loaded:
        """Run a stage; returns once it takes steps."""
        request = _numbered(load, self._number())
        reply, _ = self._call(request, limit_seconds, on_progress)
        return _expect(reply, control.Loaded)

    def start_coordinator(
        self,
        start: control.StartCoordinator,
        limit_seconds: float,
        on_progress: OnProgress = ignore,
    ) -> None:
        """Run the coordinator; returns once a trace came around the chain."""
        request = _numbered(start, self._number())
        _expect(self._call(request, limit_seconds, on_progress)[0], control.Ok)

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Stop everything that runs there but the agent."""
        request = control.Stop(id=self._number(), drain_seconds=drain_seconds)
        _expect(self._call(request, QUICK_SECONDS + drain_seconds)[0], control.Ok)

    # The conversation

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    def _connect(self) -> None:
        deadline = time.monotonic() + CONNECT_SECONDS
        while not self._is_connected:
            self._check_cancelled()
            self._is_connected = self._dialer.wait_connected(0.1)
            if not self._is_connected and time.monotonic() > deadline:
                raise LinkError(
                    f"device {self.device.name} does not answer at {self._dialer.endpoint} within "
                    f"{CONNECT_SECONDS:.0f} s: start `esc agent` there, or check its address, its "
                    "firewall and both keys (a key that is not admitted looks the same)"
                )

    def _send(self, request: control.Request, payload: bytes | None = None) -> None:
        frames = [encode(request)] if payload is None else [encode(request), payload]
        deadline = time.monotonic() + SILENCE_SECONDS
        while not self._dialer.send(frames):
            self._check_cancelled()
            self._dialer.wait_connected(0.1)
            if time.monotonic() > deadline:
                raise self._lost()

    def _call(
        self,
        request: control.Request,
        limit_seconds: float,
        on_progress: OnProgress = ignore,
        payload: bytes | None = None,
    ) -> tuple[control.Reply, bytes | None]:
        self._connect()
        self._send(request, payload)
        return self._wait(request.id, limit_seconds, on_progress)

    def _wait(
        self, number: int, limit_seconds: float, on_progress: OnProgress
    ) -> tuple[control.Reply, bytes | None]:
        now = time.monotonic()
        deadline, heard, next_ping = now + limit_seconds, now, now + PING_SECONDS
        while True:
            self._dialer.wait(0.1)
            self._check_cancelled()
            now = time.monotonic()
            frames = self._dialer.receive()
            if frames is not None:
                heard = now
                header, payload = split(frames)
                reply = control.reply_codec.decode(header)
                if isinstance(reply, control.Refused) and reply.id in (number, 0):
                    raise control.error_of(reply.kind, reply.reason)
                if reply.id != number:
                    continue
                if not isinstance(reply, control.Progress):
                    return reply, None if payload is None else bytes(payload)
                on_progress(reply.text)
            elif now > deadline:
                raise LinkError(
                    f"device {self.device.name} did not finish within {limit_seconds:.0f} s"
                )
            elif now - heard > SILENCE_SECONDS:
                raise self._lost()
            elif now > next_ping:
                next_ping = now + PING_SECONDS
                self._dialer.send([encode(control.Ping(id=0))])

    def _send_blob(self, store: Store, blob: Blob, on_bytes: Callable[[int], None]) -> None:
        """Send a blob in chunks of which one arrives within `LATE_SECONDS`.

        Signs of life queue behind them: large ones would look like silence on a slow link.
        """
        store.verify([blob])
        waiting: deque[tuple[int, int]] = deque()
        with store.path(blob).open("rb") as file:
            offset = 0
            while offset < blob.size_bytes or offset == 0:
                data = file.read(self._chunk_bytes)
                number = self._number()
                self._send(control.PutChunk(id=number, blob=blob, offset=offset), data)
                waiting.append((number, len(data)))
                offset += max(len(data), 1)
                if len(waiting) >= WINDOW_CHUNKS:
                    self._chunk_arrived(waiting, on_bytes)
        while waiting:
            self._chunk_arrived(waiting, on_bytes)

    def _chunk_arrived(
        self, waiting: deque[tuple[int, int]], on_bytes: Callable[[int], None]
    ) -> None:
        number, size = waiting.popleft()
        started = time.monotonic()
        _expect(self._wait(number, QUICK_SECONDS, ignore)[0], control.Ok)
        self._chunk_bytes = chunk_bytes(self._chunk_bytes, size, time.monotonic() - started)
        on_bytes(size)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise DeviceError("cancelled")

    def _lost(self) -> LinkError:
        return LinkError(
            f"device {self.device.name} at {self._dialer.endpoint} stopped answering for "
            f"{SILENCE_SECONDS:.0f} s: look at its `esc agent`"
        )


def chunk_bytes(now: int, size: int, seconds: float) -> int:
    """The length of the chunks that are sent next.

    Args:
        now: what it is.
        size: of the latest chunk that arrived; what is on its way may have another.
        seconds: it took, with the ones before it gone.
    """
    if seconds < SOON_SECONDS:
        return max(now, min(2 * size, control.CHUNK_BYTES))
    return max(LEAST_CHUNK_BYTES, size // 2) if seconds > LATE_SECONDS else now


def _numbered(request: Numbered, number: int) -> Numbered:
    return msgspec.structs.replace(request, id=number)


def _expect(reply: control.Reply, kind: type[Expected]) -> Expected:
    if not isinstance(reply, kind):
        raise LinkError(f"the agent answered {type(reply).__name__} instead of {kind.__name__}")
    return reply

"""A client's connections to a coordinator: one request at a time on each, the next one behind it.

A new connection is a handshake in both processes, a dozen turns of their threads. So one whose
request is over waits for the next request, its keys still checked and its signs of life still
looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from edgeshard.runtime import ask
from edgeshard.runtime.channel import Dialer, Network
from edgeshard.schemas.cluster import Device

MAX_IDLE = 16


class Connection:
    """A way to the coordinator, held by one request.

    Attributes:
        dialer: its socket.
        number: of the request; each has its own, so that nothing late is taken for the next one's.
        taken_bytes: of events, read on it so far.
        told_bytes: of these, that the coordinator was told of.
    """

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.number = 1
        self.taken_bytes = self.told_bytes = 0

    def close(self, linger_seconds: float = 0.0) -> None:
        """Hang up, after at most `linger_seconds` for what is not sent yet."""
        if not self.dialer.is_closed:
            self.dialer.close(linger_seconds)


class Connections:
    """Those of one client. May be shared by threads."""

    def __init__(self, network: Network, source: Device, *, asynchronous: bool = False) -> None:
        """Connect to nobody yet.

        Args:
            network: of the client; closing it closes them all.
            source: where the coordinator runs.
            asynchronous: event loops wait for them, each for its own.
        """
        self._network = network
        self._source = source
        self._is_async = asynchronous
        # Each with the event loop that waits for it, which alone may close it while it runs.
        self._idle: list[tuple[Connection, asyncio.AbstractEventLoop | None]] = []
        self._lock = threading.Lock()

    def take(self) -> Connection:
        """One that waits and is connected, or a new one, which may not be connected yet."""
        loop = self._loop()
        with self._lock:
            for index in reversed(range(len(self._idle))):
                connection, owner = self._idle[index]
                is_over = owner is not None and owner.is_closed()
                if owner is not loop and not is_over:
                    continue
                del self._idle[index]
                if not is_over and connection.dialer.is_connected:
                    return connection
                connection.close()
        return Connection(
            self._network.dial(
                self._source.client_endpoint,
                self._source.public_key,
                max_bytes=ask.MAX_EVENT_BYTES,
                queue=ask.MAX_UNREAD_EVENTS,
                asynchronous=self._is_async,
            )
        )

    def give_back(self, connection: Connection) -> None:
        """Its request is over: let it wait for another one."""
        connection.number += 1
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append((connection, self._loop()))
                return
        connection.close()

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that runs; None where there is none."""
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop() if self._is_async else None
        return None

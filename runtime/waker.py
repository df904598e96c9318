"""Wakes a `Poller` of `channel.py` from another thread or from a signal handler."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """Wakes a `Poller` from another thread or from a signal handler."""

    def __init__(self) -> None:
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        self.socket = self._inner.fileno()

    def wake(self) -> None:
        """End the wait, or the next one."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it wakes; closed: no one waits
            self._outer.send(b"\0")

    def clear(self) -> None:
        """Forget the wakes so far."""
        with contextlib.suppress(BlockingIOError):
            while self._inner.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._inner.close()
        self._outer.close()

"""The sending end of a hop: messages leave in order, and wait here while the peer takes none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from edgeshard.runtime.channel import Dialer, Poller


class Outlet:
    """A dialer with what it could not send yet.

    The owner stops taking work while `is_blocked`, so what waits here stays small.
    """

    def __init__(
        self, dialer: Dialer, poller: Poller, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.dialer = dialer
        self._poller = poller
        self._clock = clock
        self._waiting: deque[list[bytes | memoryview]] = deque()
        self._blocked_since = 0.0

    @property
    def is_blocked(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def blocked_seconds(self) -> float:
        """How long nothing could be sent; 0 where nothing waits."""
        return self._clock() - self._blocked_since if self._waiting else 0.0

    def send(self, frames: list[bytes | memoryview]) -> None:
        """Send, behind what waits."""
        if not self._waiting and self.dialer.send(frames):
            return
        if not self._waiting:
            self._blocked_since = self._clock()
            self._poller.watch(self.dialer, readable=False, writable=True)
        self._waiting.append(frames)

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        if not self._waiting:
            return
        while self._waiting and self.dialer.send(self._waiting[0]):
            self._waiting.popleft()
            self._blocked_since = self._clock()
        if not self._waiting:
            self._poller.watch(self.dialer, readable=False)

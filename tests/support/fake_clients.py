"""Clients of a desk without sockets: what they ask, and what they were told."""

from __future__ import annotations

from collections import deque
from typing import cast

from edgeshard.runtime import ask
from edgeshard.runtime.channel import Arrival, Listener
from edgeshard.runtime.wire import encode


class FakeClients:
    """Stands in for the listener of the client port."""

    def __init__(self) -> None:
        self.asked: deque[Arrival] = deque()
        self.told: dict[bytes, list[ask.Event]] = {}
        self.gone: set[bytes] = set()

    @property
    def listener(self) -> Listener:
        return cast(Listener, self)

    def ask(self, message: ask.Ask | bytes, peer: bytes = b"p", key: str = "k") -> None:
        data = message if isinstance(message, bytes) else encode(message)
        self.asked.append(Arrival(peer, key, [memoryview(data)]))

    def receive(self) -> Arrival | None:
        return self.asked.popleft() if self.asked else None

    def send(self, peer: bytes, frames: list[bytes]) -> bool:
        if peer in self.gone:
            return False
        self.told.setdefault(peer, []).append(ask.event_codec.decode(frames[0]))
        return True

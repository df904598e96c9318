"""The receiving end of a hop: takes each message once and in order, and acknowledges."""

from __future__ import annotations

from edgeshard.runtime.channel import Arrival, Listener
from edgeshard.runtime.flow import Receiving, credit_bytes
from edgeshard.runtime.wire import Ack, encode


class Inlet:
    """One sender's way into a listener, whichever connection it comes over."""

    def __init__(self, listener: Listener, epoch: int, largest_payload_bytes: int) -> None:
        """Take from a listener; payloads have so many bytes at most."""
        self._listener = listener
        self._flow = Receiving(epoch, credit_bytes(largest_payload_bytes))
        self._peer = b""

    @property
    def problem(self) -> str:
        """Why the hop is broken, "" where it is not."""
        return self._flow.problem

    def take(self, arrival: Arrival, epoch: int, number: int) -> bool:
        """Whether to apply a message; one of another epoch is not, and its sender hears of ours.

        Raises:
            ProtocolError: it came before, or one before it is lost.
        """
        if epoch != self._flow.epoch:
            self._listener.send(arrival.peer, [encode(Ack(self._flow.epoch, 0, 0))])
            return False
        self._flow.take(number, sum(map(len, arrival.frames)))
        self._peer = arrival.peer
        return True

    def acknowledge(self, now: float) -> None:
        """Send an ack where one is due."""
        ack = self._flow.ack(now)
        if ack is not None:
            self._listener.send(self._peer, [encode(ack)])

"""The sending end of a hop: messages leave in order and within the credit, or wait here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from edgeshard.runtime.channel import BULK_MS, PULSE_MS, Dialer, Network, Poller
from edgeshard.runtime.flow import Sending, credit_bytes
from edgeshard.runtime.link_watch import LinkWatch
from edgeshard.runtime.wire import (
    MAX_HEADER_BYTES,
    Knock,
    ProtocolError,
    ReturnMessage,
    StageMessage,
    ack_codec,
    encode_numbered,
    split,
)

BLOCKED_SECONDS = 3.0
Payload = bytes | memoryview


class Outlet:
    """A dialer with what it could not send yet.

    The owner stops taking work while `is_blocked`, so what waits here stays small. A second
    connection carries nothing but signs of life: on the first they would queue behind a payload,
    and a slow link would look like a cut one.
    """

    def __init__(
        self,
        network: Network,
        endpoint: str,
        key: str,
        *,
        flow: Sending,
        queue: int,
        poller: Poller | None = None,
        of_tokens: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Dial.

        Args:
            network: of this process.
            endpoint: of the receiving end.
            key: its public key.
            flow: what may go.
            queue: messages that libzmq keeps at most.
            poller: told what to wait for while something waits here; None: only `offer` is used.
            of_tokens: this is the last stage's way to stage 0.
            clock: seconds.
        """
        self.flow = flow
        self.endpoint = endpoint
        self._dialer: Dialer = network.dial(
            endpoint, key, max_bytes=MAX_HEADER_BYTES, queue=queue, silence_ms=BULK_MS
        )
        self._pulse = network.dial(endpoint, key, max_bytes=0, queue=1, silence_ms=PULSE_MS)
        self._poller = poller
        self._knock = Knock(flow.epoch, of_tokens)
        self._clock = clock
        self._link = LinkWatch()
        self._waiting: deque[tuple[StageMessage | ReturnMessage, Payload | None]] = deque()
        self._waits_for_credit = False
        self._blocked_since = 0.0
        self._blocked_before = 0.0

    @property
    def is_blocked(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def blocked_seconds(self) -> float:
        """How long something has waited, all in all."""
        return self._blocked_before + self._blocked_for(self._clock())

    def _blocked_for(self, now: float) -> float:
        return now - self._blocked_since if self._waiting else 0.0

    def problem(self, now: float) -> str:
        """Why nothing can be sent any more, or ""."""
        if self.flow.problem:
            return f"{self.endpoint}: {self.flow.problem}"
        if self._link.is_cut(now):
            return f"the connection to {self.endpoint} is cut"
        if not self._waits_for_credit and self._blocked_for(now) > BLOCKED_SECONDS:
            return f"cannot send to {self.endpoint} for {BLOCKED_SECONDS:.0f} s"
        return ""

    def send(self, message: StageMessage | ReturnMessage, payload: Payload | None = None) -> None:
        """Send, behind what waits."""
        if self.offer(message, payload):
            return
        if not self._waiting:
            self._blocked_since = self._clock()
        self._waiting.append((message, payload))
        self._await()

    def offer(self, message: StageMessage | ReturnMessage, payload: Payload | None = None) -> bool:
        """Send if that can be done now."""
        return not self._waiting and self._go(message, payload)

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        if not self._waiting:
            return
        now = self._clock()
        while self._waiting and self._go(*self._waiting[0]):
            self._waiting.popleft()
            self._blocked_before += now - self._blocked_since
            self._blocked_since = now
        self._await()

    def look(self, now: float) -> None:
        """Take acks, see whether the peer is there, and knock; for each `LOOK_SECONDS`."""
        self._take_acks()
        self._link.saw(self._pulse.is_connected, now)
        if self.flow.wants_knock(now):
            header = encode_numbered(self.flow.num_sent, self._knock)
            if self._dialer.send([header]):
                self.flow.knock(len(header), now)

    def _go(self, message: StageMessage | ReturnMessage, payload: Payload | None) -> bool:
        flow = self.flow
        header = encode_numbered(flow.num_sent, message)
        size = len(header) if payload is None else len(header) + len(payload)
        self._waits_for_credit = not flow.has_room(size)
        if self._waits_for_credit:
            self._take_acks()
            self._waits_for_credit = not flow.has_room(size)
        if self._waits_for_credit:
            return False
        if not self._dialer.send([header] if payload is None else [header, payload]):
            return False
        flow.send(size, self._clock())
        return True

    def _await(self) -> None:
        """Wait for what is missing: an ack, or a peer that takes something."""
        if self._poller is not None:
            is_writable = bool(self._waiting) and not self._waits_for_credit
            self._poller.watch(self._dialer, readable=bool(self._waiting), writable=is_writable)

    def _take_acks(self) -> None:
        while (frames := self._dialer.receive()) is not None:
            try:
                self.flow.take(ack_codec.decode(split(frames, 0)[0]), self._clock())
            except ProtocolError as error:
                self.flow.problem = self.flow.problem or f"it answers what is no ack: {error}"


def sending(epoch: int, largest_payload_bytes: int) -> Sending:
    """The flow of a hop whose payloads have so many bytes at most."""
    return Sending(epoch, credit_bytes(largest_payload_bytes))

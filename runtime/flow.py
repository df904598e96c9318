"""What the two ends of a data hop keep count of: order and credit. No socket, no clock.

    Sending ──── number n, size ───────► Receiving    n is the next, or it is not applied
       ▲  has_room(size)?                    │
       └──── Ack(messages, taken_bytes) ◄────┘        after half the credit, or LOOK_SECONDS

Numbers count the messages of a hop from 0, once in an epoch: connections may come and go. Both ends
work the credit out from the deployment, as they do all sizes. Acks are cumulative, so a lost one
costs nothing. A sender that waits for one too long knocks: where the tail was lost, the knock's own
number shows it, and where the receiver computes, it is one small message more.

Rule: never more bytes in flight than the credit. A message is applied once and in order, or the hop
is broken for good and says why; a message or an ack of another epoch is never taken for ours.
"""

from __future__ import annotations

from edgeshard.runtime.link_watch import LOOK_SECONDS
from edgeshard.runtime.wire import MAX_HEADER_BYTES, Ack, ProtocolError

LEAST_CREDIT_BYTES = 256 * 1024
CREDIT_MESSAGES = 4  # two while two acks' worth are on their way: nobody waits for an ack
KNOCK_BYTES = 64  # always free for a knock
KNOCK_SECONDS = 1.0


def credit_bytes(largest_payload_bytes: int) -> int:
    """Bytes that may be on their way over a hop."""
    return max(LEAST_CREDIT_BYTES, CREDIT_MESSAGES * (largest_payload_bytes + MAX_HEADER_BYTES))


class Sending:
    """The sending end.

    Attributes:
        num_sent, sent_bytes: so far, headers and payloads.
        problem: why the hop is broken, "" where it is not.
    """

    def __init__(self, epoch: int, credit: int, now: float = 0.0) -> None:
        self.epoch = epoch
        self.credit = credit
        self.num_sent = 0
        self.sent_bytes = 0
        self.problem = ""
        self._num_acked = 0
        self._acked_bytes = 0
        self._heard = now  # the latest ack, or when something was sent with nothing in flight
        self._has_knocked = False

    @property
    def in_flight_bytes(self) -> int:
        """Sent, and not known to be taken."""
        return self.sent_bytes - self._acked_bytes

    def has_room(self, size: int) -> bool:
        """Whether a message of so many bytes may go."""
        return self.in_flight_bytes + size <= self.credit - KNOCK_BYTES

    def send(self, size: int, now: float) -> None:
        """A message went, with the number `num_sent`."""
        if self._num_acked == self.num_sent:
            self._heard = now
        self.num_sent += 1
        self.sent_bytes += size

    def take(self, ack: Ack, now: float) -> None:
        """An ack came. One that cannot be true breaks the hop."""
        if ack.epoch != self.epoch:
            self.problem = self.problem or "the other end was deployed anew for another chain"
        elif ack.messages > self.num_sent or ack.taken_bytes > self.sent_bytes:
            self.problem = self.problem or (
                f"{ack.messages} messages of {ack.taken_bytes} bytes were acknowledged, "
                f"{self.num_sent} of {self.sent_bytes} were sent"
            )
        elif ack.messages > self._num_acked:
            self._num_acked, self._acked_bytes = ack.messages, ack.taken_bytes
            self._heard, self._has_knocked = now, False

    def wants_knock(self, now: float) -> bool:
        """Whether to ask now what became of what is in flight."""
        is_late = self._num_acked < self.num_sent and now - self._heard >= KNOCK_SECONDS
        return is_late and not self._has_knocked and not self.problem

    def knock(self, size: int, now: float) -> None:
        """A knock went; there is no other before an ack."""
        self.send(size, now)
        self._has_knocked = True


class Receiving:
    """The receiving end.

    Attributes:
        problem: why the hop is broken, "" where it is not.
    """

    def __init__(self, epoch: int, credit: int) -> None:
        self.epoch = epoch
        self.problem = ""
        self._credit = credit
        self._num_taken = 0
        self._taken_bytes = 0
        self._acked_bytes = 0
        self._acked_at = 0.0

    def take(self, number: int, size: int) -> None:
        """A message of our epoch came; where this returns, it is to be applied.

        Raises:
            ProtocolError: it came before, or one before it is lost.
        """
        if self.problem:
            raise ProtocolError(self.problem)
        if number < self._num_taken:
            raise ProtocolError(f"message {number} came again; {self._num_taken} is the next")
        if number > self._num_taken:
            self.problem = (
                f"messages {self._num_taken} to {number - 1} were lost on their way: the "
                "connection broke; deploy again"
            )
            raise ProtocolError(self.problem)
        self._num_taken += 1
        self._taken_bytes += size

    def ack(self, now: float) -> Ack | None:
        """What to tell the sender now, if anything."""
        new_bytes = self._taken_bytes - self._acked_bytes
        if not new_bytes:
            return None
        if 2 * new_bytes < self._credit and now - self._acked_at < LOOK_SECONDS:
            return None
        self._acked_bytes, self._acked_at = self._taken_bytes, now
        return Ack(self.epoch, self._num_taken, self._taken_bytes)

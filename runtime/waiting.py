"""Requests that wait for a slot: whose turn it is, when there are too many, when to ask again.

Rule: clients take turns, whoever asks much waits for its own requests only. What waits is bounded
in requests and in tokens of their prompts.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Iterator

from edgeshard.runtime.live_request import Request
from edgeshard.runtime.schedule_limits import MAX_RETRY_SECONDS, NUM_HELD, Limits


class Waiting:
    """The queue."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[str, deque[Request]] = {}  # of clients, in the order of their turns
        self._held: deque[float] = deque(maxlen=NUM_HELD)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Request]:
        for queue in self._queues.values():
            yield from queue

    def add(self, request: Request) -> None:
        """Put a request at the end of its client's."""
        self._queues.setdefault(request.ask.client, deque()).append(request)

    def next(self) -> Request:
        """Take out whose turn it is; there has to be one."""
        client = next(iter(self._queues))
        queue = self._queues.pop(client)
        request = queue.popleft()
        if queue:
            self._queues[client] = queue  # behind the other clients
        return request

    def take(self, number: int) -> Request | None:
        """Take out one request; None where it does not wait."""
        for client, queue in self._queues.items():
            for request in queue:
                if request.ask.request == number:
                    queue.remove(request)
                    if not queue:
                        del self._queues[client]
                    return request
        return None

    def clear(self) -> None:
        """Forget them all."""
        self._queues.clear()

    def note_held(self, seconds: float) -> None:
        """A request held a slot for so long."""
        self._held.append(seconds)

    def full(self, num_prompt: int, ages: Iterable[float]) -> tuple[str, float] | None:
        """Why a request cannot even wait, and in how many seconds to ask again.

        Args:
            num_prompt: tokens of its prompt.
            ages: seconds for which the requests that run hold their slots.
        """
        limits, num_waiting = self._limits, len(self)
        if not num_waiting:
            return None
        tokens = sum(request.num_prompt for request in self)
        if num_waiting >= limits.max_waiting:
            allowed = f"at most {limits.max_waiting} may"
            return self._later(f"{num_waiting} requests wait already, {allowed}", ages)
        if tokens + num_prompt > limits.max_waiting_tokens:
            return self._later(
                f"{tokens} prompt tokens wait already and {num_prompt} come, at most "
                f"{limits.max_waiting_tokens} may",
                ages,
            )
        return None

    def seconds(self, ages: Iterable[float]) -> float:
        """After how long one more that came now would have a slot, were none free; see `full`."""
        held = statistics.fmean(self._held) if self._held else max(ages, default=0.0)
        return min(held * (len(self) + 1) / self._limits.slots, MAX_RETRY_SECONDS)

    def _later(self, reason: str, ages: Iterable[float]) -> tuple[str, float]:
        seconds = round(max(self.seconds(ages), 0.1), 1)
        return f"{reason}; ask again in {seconds} s", seconds

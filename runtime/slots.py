"""The slots of a chain: which are free, who holds the others, and what a prompt finds in them.

    free     the one that was used longest ago first; each keeps what its last request left
    running  in the order in which they got their slots

A request whose prompt starts as that of an earlier one, in any slot, starts with a copy of that
part on every stage (`kept_prompts.py`), or in the slot itself where nothing is lost by it. Where
the earlier one still computes that part, the new one waits for it.

Rule: what is copied was sent before. A hop keeps the order, so a stage has written it by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgeshard.runtime.kept_prompts import MIN_TOKENS, Held, Start, start_of
from edgeshard.runtime.live_request import Request
from edgeshard.runtime.schedule_limits import Limits
from edgeshard.runtime.wire import Kept


class Slots:
    """Who is in which slot.

    Attributes:
        running: requests that have a slot, by number.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = list(range(limits.slots))
        self._kept: dict[int, Held] = {}
        self.running: dict[int, Request] = {}

    @property
    def has_free(self) -> bool:
        """Whether a request can have one."""
        return bool(self._free)

    def give(self, request: Request) -> None:
        """Give a request a slot: of one that it starts like where nothing is lost, or an idle one.

        With `leader` and `awaited` it says whether something is worth waiting for.
        """
        starts = list(self._starts(request))
        best = max(starts, key=lambda start: (start.length, start.num_ready), default=None)
        own = best is not None and best.slot in self._free
        if best is not None and own and (best.is_all or not self._limits.copies_slots):
            request.slot = best.slot
        else:
            request.slot = self._idle_slot()
        self._free.remove(request.slot)
        ready = max((start.num_ready for start in starts), default=0)
        if best is not None and best.length - ready >= MIN_TOKENS:
            request.leader, request.awaited = self.running[best.request], best.length
        self.running[request.ask.request] = request

    def waits(self, request: Request) -> bool:
        """Whether an earlier request is still computing what this one is to start with."""
        leader = request.leader
        return (
            leader is not None
            and self.running.get(leader.ask.request) is leader
            and leader.sent < request.awaited
        )

    def open(self, request: Request) -> Kept | None:
        """What a request starts with, taken for it; its slot holds nothing else from now on."""

        def worth(start: Start) -> tuple[int, int, bool]:
            exact = min(start.num_ready, start.num_exact)
            return start.num_ready, exact, start.slot == request.slot

        starts = [start for start in self._starts(request) if start.num_ready >= MIN_TOKENS]
        best = max(starts, key=worth, default=None)
        request.is_open, request.leader = True, None
        self._kept.pop(request.slot, None)
        if best is None:
            return None
        if best.slot in self._free:
            self._free.remove(best.slot)
            self._free.append(best.slot)
        request.sent = request.num_kept = best.num_ready
        if best.num_ready > best.num_exact:
            request.exact = best.num_exact
        return Kept(best.request, best.slot, best.num_ready)

    def leave(self, request: Request, *, is_trusted: bool = True) -> None:
        """A request is over.

        Args:
            request: that has a slot.
            is_trusted: all stages hold what was sent of it.
        """
        del self.running[request.ask.request]
        self._free.append(request.slot)
        if request.is_open and is_trusted:
            held = request.held()
            text, exact = held.text[: request.sent], min(request.exact, request.sent)
            self._kept[request.slot] = Held(held.request, held.client, text, exact, len(text))

    def replace(self, request: Request) -> None:
        """Put another request of the same number into its slot, in the same turn."""
        self.running[request.ask.request] = request

    def clear(self) -> None:
        """The chain has failed: nobody runs and nothing is held."""
        self._free = list(range(self._limits.slots))
        self._kept.clear()
        self.running.clear()

    def _starts(self, request: Request) -> Iterator[Start]:
        """What slots hold, or will, of a request's prompt; of requests, those before it alone."""
        if request.starts_anew:
            return
        ask = request.ask
        for slot, held in self._holders(request):
            if held.client == ask.client or self._limits.share_prompts:
                start = start_of(ask.prompt, slot, held, ask.reuse_answers)
                if start is not None:
                    yield start

    def _holders(self, request: Request) -> Iterator[tuple[int, Held]]:
        if not self._limits.copies_slots:
            places = self._free if request.slot < 0 else [request.slot]
            yield from ((slot, self._kept[slot]) for slot in places if slot in self._kept)
            return
        yield from self._kept.items()
        for other in self.running.values():
            if other is request:
                return  # whoever waits for a later one might wait for ever
            yield other.slot, other.held()

    def _idle_slot(self) -> int:
        """A free slot of the group with the fewest requests.

        There one that keeps nothing, or else the one that was used longest ago.
        """
        size = self._limits.group_slots
        used = Counter(request.slot // size for request in self.running.values())
        return min(self._free, key=lambda slot: (used[slot // size], slot in self._kept))

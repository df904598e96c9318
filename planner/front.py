"""What else there is: the plans that no other beats in latency, in rate and in number of devices.

For each number of devices the cheapest chain, then the cheapest whose slowest stage or link is
faster than that one's, and so on (epsilon constraints). What another plan beats in all is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeshard.planner.blocking import least_transfers
from edgeshard.planner.cheapest import EXACT, Effort, cheapest_chain
from edgeshard.planner.costs import CostTable
from edgeshard.planner.groups import group, name_devices
from edgeshard.planner.hosts import Span, hosts_of

EFFORT = Effort(num_values=2e7, num_rounds=2)
MOST_DEVICES = 8
MOST_STEPS = 12


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan on the front.

    Attributes:
        token_seconds: time of a token, as the latency objective counts it.
        slowest_seconds: its slowest stage or link.
        is_proven: no plan with so few devices and as fast a slowest stage has a lower latency.
    """

    spans: tuple[Span, ...]
    token_seconds: float
    slowest_seconds: float
    is_proven: bool

    @property
    def num_devices(self) -> int:
        """Devices that it uses."""
        return len({span.device for span in self.spans})

    def beats(self, other: Choice) -> bool:
        """Whether it is at least as good in all three, and not the same."""
        mine = (self.num_devices, self.token_seconds, self.slowest_seconds)
        theirs = (other.num_devices, other.token_seconds, other.slowest_seconds)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def front(costs: CostTable, most_devices: int = MOST_DEVICES) -> tuple[Choice, ...]:
    """The front, by number of devices and then by latency.

    Args:
        costs: what everything costs.
        most_devices: longer chains are not looked at.

    Raises:
        PlanError: the source cannot hold unit 0.
    """
    hosts = hosts_of(costs, "latency")
    bounded = least_transfers(hosts.table)
    found: list[Choice] = []
    for most_stages in range(1, min(most_devices, len(hosts.devices), costs.num_units) + 1):
        limit = float("inf")
        for _ in range(MOST_STEPS):
            table = bounded.within(limit)
            problem, members = group(table)
            best = cheapest_chain(replace(problem, most_stages=most_stages), EFFORT)
            if best.chain is None:
                break
            chain = name_devices(best.chain, members)
            slowest = hosts.table.slowest(chain)
            is_proven = best.bound >= best.cost and slowest <= limit
            limit = bounded.slowest(chain) * (1 - EXACT)
            seconds = costs.entry_seconds + best.cost
            found.append(Choice(hosts.spans(chain), seconds, slowest, is_proven))
    kept = [one for one in found if not any(other.beats(one) for other in found)]
    unique = {(one.num_devices, one.token_seconds, one.slowest_seconds): one for one in kept}
    return tuple(unique[key] for key in sorted(unique))

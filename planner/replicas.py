"""Several chains side by side on disjoint devices: when do they beat one long chain?

Devices are dealt out by speed, like cards, a source to each chain first; each hand is planned for
throughput by itself, over every grouping of its slots. Another deal may be better: the bound says
by how much at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeshard.errors import PlanError
from edgeshard.planner.batches import Chosen, CostTables, best_rate
from edgeshard.planner.cheapest import Effort
from edgeshard.planner.costs import CostTable
from edgeshard.planner.hands import can_start, hand_of
from edgeshard.planner.replica_bound import replica_bound

EFFORT = Effort(num_values=2e7, num_rounds=2)
MOST_REPLICAS = 8


@dataclass(frozen=True, slots=True)
class Fleet:
    """Chains on disjoint devices.

    Attributes:
        devices: names along each chain.
        tokens_per_second: of all chains together, each with as many slots as were asked for.
        bound_tokens_per_second: no so many chains, on whatever devices, do more.
    """

    devices: tuple[tuple[str, ...], ...]
    tokens_per_second: float
    bound_tokens_per_second: float


def replicas(
    tables: CostTables, slots: int, rows: int | None = None, most: int = MOST_REPLICAS
) -> tuple[Fleet, ...]:
    """The fleets of one chain, two, and so on, as far as the model fits each hand.

    Args:
        tables: what everything costs, by the rows of a step.
        slots: sequences that each chain holds at once.
        rows: of a step, where they are given; None: whatever gives the highest rate.
        most: chains at most.

    Raises:
        PlanError: there is not even one chain.
    """
    costs = tables.of(rows or 1)
    assert costs is not None  # what the plan was made from
    bound = replica_bound(tables, slots, rows)
    found: list[Fleet] = []
    for num_chains in range(1, min(most, len(costs.devices)) + 1):
        hands = _deal(costs, num_chains)
        if hands is None:
            break
        try:
            chains = [_plan(tables, costs, hand, slots, rows) for hand in hands]
        except PlanError:
            if num_chains == 1:
                raise
            continue
        rate = sum(1 / chain.seconds for chain in chains)
        limit = 1 / chains[0].bound_seconds if num_chains == 1 else bound.of(num_chains)
        found.append(Fleet(tuple(map(_names, chains)), rate, max(rate, limit)))
    return tuple(found)


def _names(chain: Chosen) -> tuple[str, ...]:
    return tuple(chain.costs.devices[span.device].name for span in chain.partition.spans)


def _deal(costs: CostTable, num_chains: int) -> list[list[int]] | None:
    """Devices of each chain, its source first; None where too few can be a source."""

    def seconds(device: int) -> float:
        return min(sum(one.decode_seconds[1:]) for one in costs.devices[device].providers)

    others = [device for device in range(len(costs.devices)) if device != costs.source]
    others.sort(key=seconds)
    starts = [device for device in reversed(others) if can_start(costs.devices[device])]
    sources = [costs.source, *starts[: num_chains - 1]]
    if len(sources) < num_chains:
        return None
    hands = [[source] for source in sources]
    for number, device in enumerate(device for device in others if device not in sources):
        turn, place = divmod(number, num_chains)
        hands[place if turn % 2 == 0 else num_chains - 1 - place].append(device)
    return hands


def _plan(
    tables: CostTables, costs: CostTable, hand: Sequence[int], slots: int, rows: int | None
) -> Chosen:
    """The best chain of a hand."""
    names = [costs.devices[device].name for device in hand]

    def of(number: int) -> CostTable:
        table = tables.of(number)
        known = {} if table is None else {d.name: i for i, d in enumerate(table.devices)}
        if table is None or names[0] not in known or not can_start(table.devices[known[names[0]]]):
            raise PlanError(f"{names[0]} was not measured with {number} sequences a step")
        return hand_of(table, [known[name] for name in names if name in known])

    return best_rate(CostTables(of), slots, rows, EFFORT)

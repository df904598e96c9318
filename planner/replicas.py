"""Several chains side by side on disjoint devices: when do they beat one long chain?

Devices are dealt out by speed, like cards, a source to each chain first; each hand is planned for
throughput by itself. Another deal may be better: the figure is what this one would do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeshard.errors import PlanError
from edgeshard.planner.cheapest import Effort
from edgeshard.planner.costs import CostTable
from edgeshard.planner.partition import Partition, best_partition

EFFORT = Effort(num_values=2e7, num_rounds=2)
MOST_REPLICAS = 8


@dataclass(frozen=True, slots=True)
class Fleet:
    """Chains on disjoint devices.

    Attributes:
        devices: names along each chain.
        tokens_per_second: of all chains together, each with as many slots as were asked for.
    """

    devices: tuple[tuple[str, ...], ...]
    tokens_per_second: float


def replicas(costs: CostTable, most: int = MOST_REPLICAS) -> tuple[Fleet, ...]:
    """The fleets of one chain, two, and so on, as far as the model fits each hand.

    Raises:
        PlanError: there is not even one chain.
    """
    found = []
    for num_chains in range(1, min(most, len(costs.devices)) + 1):
        hands = _deal(costs, num_chains)
        if hands is None:
            break
        try:
            chains = [_plan(costs, hand) for hand in hands]
        except PlanError:
            if num_chains == 1:
                raise
            continue
        names = tuple(
            tuple(costs.devices[hand[span.device]].name for span in plan.spans)
            for hand, (plan, _) in zip(hands, chains, strict=True)
        )
        found.append(Fleet(names, sum(rate for _, rate in chains)))
    return tuple(found)


def _deal(costs: CostTable, num_chains: int) -> list[list[int]] | None:
    """Devices of each chain, its source first; None where too few can be a source."""

    def seconds(device: int) -> float:
        return min(sum(one.decode_seconds[1:]) for one in costs.devices[device].providers)

    others = [device for device in range(len(costs.devices)) if device != costs.source]
    others.sort(key=seconds)
    can_start = [
        device
        for device in reversed(others)
        if any(np.isfinite(one.decode_seconds[0]) for one in costs.devices[device].providers)
    ]
    sources = [costs.source, *can_start[: num_chains - 1]]
    if len(sources) < num_chains:
        return None
    hands = [[source] for source in sources]
    for number, device in enumerate(device for device in others if device not in sources):
        turn, place = divmod(number, num_chains)
        hands[place if turn % 2 == 0 else num_chains - 1 - place].append(device)
    return hands


def _plan(costs: CostTable, hand: Sequence[int]) -> tuple[Partition, float]:
    """The best chain of a hand, and its tokens per second."""
    pairs = np.ix_(hand, hand)
    way_back = np.where(np.isfinite(costs.hop_seconds), costs.hop_seconds, 0.0)
    way_back -= np.where(np.isfinite(costs.hop_busy_seconds), costs.hop_busy_seconds, 0.0)
    way_back[np.isinf(costs.hop_seconds)] = np.inf
    back = way_back[list(hand), hand[0]]
    back[0] = costs.devices[hand[0]].loopback_seconds
    table = dataclasses.replace(
        costs,
        source=0,
        devices=tuple(costs.devices[device] for device in hand),
        hop_seconds=costs.hop_seconds[pairs],
        hop_busy_seconds=costs.hop_busy_seconds[pairs],
        prefill_hop_seconds=costs.prefill_hop_seconds[pairs],
        return_seconds=back,
    )
    best = best_partition(table, "throughput", EFFORT)
    workload = costs.workload
    return best, min(workload.slots / best.token_seconds, workload.batch / best.seconds)

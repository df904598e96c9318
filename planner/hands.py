"""Some devices of a cost table, with another source: what a replica is planned over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.units import ProviderCosts


def can_start(device: DeviceCosts) -> bool:
    """Whether the first unit was measured on the device, so that it could be a source."""
    return any(map(_has_first, device.providers))


def hand_of(costs: CostTable, hand: Sequence[int]) -> CostTable:
    """The cost table of some devices, by their indices; the first one can start and is the source.

    A token's way back takes the latency of a hop.
    """
    places = list(hand)
    owner = costs.devices[places[0]]
    usable = tuple(one for one in owner.providers if _has_first(one))
    devices = (replace(owner, providers=usable), *(costs.devices[place] for place in places[1:]))
    known = np.isfinite(costs.hop_seconds)
    latency = np.full(known.shape, np.inf)
    np.subtract(costs.hop_seconds, costs.hop_busy_seconds, out=latency, where=known)
    way_back = latency[places, places[0]]
    way_back[0] = owner.loopback_seconds
    pairs = np.ix_(places, places)
    return replace(
        costs,
        source=0,
        devices=devices,
        hop_seconds=costs.hop_seconds[pairs],
        hop_busy_seconds=costs.hop_busy_seconds[pairs],
        prefill_hop_seconds=costs.prefill_hop_seconds[pairs],
        return_seconds=way_back,
    )


def _has_first(provider: ProviderCosts) -> bool:
    return math.isfinite(provider.decode_seconds[0] + provider.prefill_seconds[0])

"""Layers on devices as the paper's algorithms see them: one time and one size of each, no stages.

    time of unit i on device j after unit i-1 on device k  =  seconds[j, i] + enter[k, j]

A device counts with its fastest provider alone. What a step of a stage costs beside its units is
part of entering the device; bytes that units share are counted for each of them.

Axes: D device, N unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeshard.errors import PlanError
from edgeshard.planner.costs import CostTable, DeviceCosts
from edgeshard.planner.hosts import Span

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """Numbers of all layers and devices.

    Attributes:
        source: the device of layer 0.
        seconds: `[D, N]`, compute of a layer; infinite where it was not measured.
        overhead: `[D]`, what a step of a stage costs beside its layers.
        enter: `[D from, D to]`, hop and overhead; 0 from a device to itself.
        start_seconds: from the coordinator into the source's first layer.
        way_back: `[D]`, from the last layer to the source.
        unit_bytes: `[D, N]`, weights, keys and values of a layer.
        room_bytes: `[D]`, what layers may take; negative where not even the runtime fits.
        provider: of each device, by its index there.
    """

    source: int
    seconds: Floats
    overhead: Floats
    enter: Floats
    start_seconds: float
    way_back: Floats
    unit_bytes: Bytes
    room_bytes: Bytes
    provider: tuple[int, ...]


def layer_table(costs: CostTable) -> LayerTable:
    """The layers of a cost table."""
    provider = tuple(fastest_provider(device) for device in costs.devices)
    chosen = [device.providers[p] for device, p in zip(costs.devices, provider, strict=True)]
    overhead = np.array([device.step_overhead_seconds for device in costs.devices])
    enter = np.array(costs.hop_seconds) + overhead[None, :]
    np.fill_diagonal(enter, 0.0)
    kv_bytes = np.array([costs.models[one.model].kv_bytes for one in chosen], np.int64)
    return LayerTable(
        source=costs.source,
        seconds=np.array([one.decode_seconds for one in chosen]),
        overhead=overhead,
        enter=enter,
        start_seconds=costs.entry_seconds + float(overhead[costs.source]),
        way_back=np.array(costs.return_seconds),
        unit_bytes=np.array([one.weights_bytes for one in chosen], np.int64) + kv_bytes,
        room_bytes=np.array(
            [one.limit_bytes - one.baseline_bytes - one.workspace_bytes for one in costs.devices],
            np.int64,
        ),
        provider=provider,
    )


def fastest_provider(device: DeviceCosts) -> int:
    """Index of the provider that takes least for all units but the first."""
    return min(
        range(len(device.providers)), key=lambda p: sum(device.providers[p].decode_seconds[1:])
    )


def spans_of(table: LayerTable, hosts: list[int]) -> tuple[Span, ...]:
    """Neighbouring layers of one host together, in order; a host may come up twice."""
    starts = [unit for unit in range(len(hosts)) if unit == 0 or hosts[unit] != hosts[unit - 1]]
    stops = [*starts[1:], len(hosts)]
    return tuple(
        Span(hosts[start], table.provider[hosts[start]], start, stop)
        for start, stop in zip(starts, stops, strict=True)
    )


def nothing_found(method: str) -> PlanError:
    """The error of a method that finds no plan, where another may."""
    return PlanError(
        f"{method} finds no plan within the devices' memory and measured links; "
        "plan without --method, which considers every chain"
    )

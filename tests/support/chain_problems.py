"""Chain problems over devices, drawn or by hand, and every chain there is of a small one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from edgeshard.planner.chains import Costs, Link
from edgeshard.planner.groups import DeviceTable


def linear_stage(per_unit: Sequence[float], num_units: int, longest: int = 10**6) -> Costs:
    """`[C, start, stop]`: the first class is the source's, the others follow it."""
    places = np.arange(num_units + 1)
    lengths = (places[None, :] - places[:, None]).astype(np.float64)
    lengths[(lengths <= 0) | (lengths > longest)] = np.inf
    stage = np.stack([lengths * seconds for seconds in per_unit])
    stage[0, 1:] = np.inf
    stage[1:, 0] = np.inf
    return stage


def random_table(
    generator: np.random.Generator,
    num_units: int,
    counts: Sequence[int],
    jitter: float = 0.0,
    room: float = 1.5,
) -> DeviceTable:
    """A source and devices of types, `counts` of each, whose links differ by `jitter` or less.

    All devices together have room for about `room` times the model.
    """
    num_types = len(counts)
    types = np.array([0, *np.repeat(np.arange(num_types), counts)])
    unit_seconds = generator.uniform(1.0, 10.0, (num_types, 1)) * generator.uniform(
        0.9, 1.1, (num_types, num_units)
    )
    unit_bytes = generator.uniform(0.8, 1.2, num_units)
    room_bytes = generator.uniform(0.5, 2.0, num_types)
    scale = room * unit_bytes.sum() / room_bytes[types].sum()
    room_bytes = np.maximum(room_bytes * scale, unit_bytes.max())
    stage = np.full((num_types + 1, num_units + 1, num_units + 1), np.inf)
    for start, stop in itertools.combinations(range(num_units + 1), 2):
        held = unit_bytes[start:stop].sum()
        for kind in range(num_types + 1):
            hardware = max(kind - 1, 0)
            if held <= room_bytes[hardware] and (start == 0) == (kind == 0):
                stage[kind, start, stop] = 0.5 + unit_seconds[hardware, start:stop].sum()
    rate = generator.uniform(1.0, 12.0, (num_types, num_types))
    noise = generator.uniform(1 - jitter, 1 + jitter, (len(types), len(types)))
    busy = rate[types][:, types] * noise
    return DeviceTable(
        stage=stage,
        class_of=np.array([0, *(types[1:] + 1)], np.intp),
        hop=busy + 0.25,
        busy=busy,
        way_back=np.where(np.arange(len(types)) == 0, 0.0, 0.25),
        source=0,
    )


def every_chain(table: DeviceTable) -> Iterator[tuple[Link, ...]]:
    """All device orders and cuts whose stages, hops and way back are finite."""
    num_units = table.stage.shape[1] - 1
    others = [device for device in range(len(table.hop)) if device != table.source]
    for num_others in range(min(len(others), num_units - 1) + 1):
        for order in itertools.permutations(others, num_others):
            devices = (table.source, *order)
            for cuts in itertools.combinations(range(1, num_units), num_others):
                spans = itertools.pairwise((0, *cuts, num_units))
                chain = tuple((d, a, b) for d, (a, b) in zip(devices, spans, strict=True))
                if math.isfinite(sum_of(table, chain)):
                    yield chain


def sum_of(table: DeviceTable, chain: Sequence[Link]) -> float:
    stages = sum(float(table.stage[table.class_of[d], i, j]) for d, i, j in chain)
    hops = sum(float(table.hop[a[0], b[0]]) for a, b in itertools.pairwise(chain))
    return stages + hops + float(table.way_back[chain[-1][0]])


def slowest_of(table: DeviceTable, chain: Sequence[Link]) -> float:
    stages = [float(table.stage[table.class_of[d], i, j]) for d, i, j in chain]
    return max(stages + [float(table.busy[a[0], b[0]]) for a, b in itertools.pairwise(chain)])

"""Find the devices that nothing tells apart.

Two devices are interchangeable where their stages cost the same and so do their links to and from
every other device, and the links between the two. That is an equivalence: groups are well defined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeshard.planner.chains import ChainProblem, Costs, Indices, Link


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTable:
    """Costs by device instead of group; fields as in `ChainProblem`, axes D device.

    Attributes:
        busy: `[D from, D to]`, the part of a hop that the next frame has to wait for.
        stage_busy: `[C, start, stop]`, for how long a stage keeps its device; None: all its time.
        busy_back: `[D]`, the part of the way back that the next frame has to wait for; None: none.
        is_blocking: a transfer stops both ends, so that a stage's hops are part of its time.
    """

    stage: Costs
    class_of: Indices
    hop: Costs
    busy: Costs
    way_back: Costs
    source: int
    stage_busy: Costs | None = None
    busy_back: Costs | None = None
    is_blocking: bool = False

    @property
    def held(self) -> Costs:
        """`[C, start, stop]`, for how long a stage keeps its device."""
        return self.stage if self.stage_busy is None else self.stage_busy

    @property
    def held_back(self) -> Costs:
        """`[D]`, for how long the way back keeps its link."""
        return np.zeros(len(self.way_back)) if self.busy_back is None else self.busy_back

    def within(self, limit: float) -> DeviceTable:
        """The same without the stages and hops that keep a frame waiting longer than the limit."""
        return replace(
            self,
            stage=np.where(self.held <= limit, self.stage, np.inf),
            hop=np.where(self.busy <= limit, self.hop, np.inf),
            way_back=np.where(self.held_back <= limit, self.way_back, np.inf),
        )

    def total(self, chain: Sequence[Link]) -> float:
        """The sum of a chain's stages, hops and way back."""
        stages = sum(float(self.stage[self.class_of[d], i, j]) for d, i, j in chain)
        pairs = itertools.pairwise(chain)
        hops = sum(float(self.hop[a, b]) for (a, _, _), (b, _, _) in pairs)
        return stages + hops + float(self.way_back[chain[-1][0]])

    def held_by(self, chain: Sequence[Link]) -> list[float]:
        """For how long each stage keeps its device where transfers block: with its hops."""
        pairs = itertools.pairwise(chain)
        hops = [float(self.hop[a, b]) for (a, _, _), (b, _, _) in pairs]
        ways = [0.0, *hops, float(self.way_back[chain[-1][0]])]
        return [
            ways[index] + float(self.stage[self.class_of[d], i, j]) + ways[index + 1]
            for index, (d, i, j) in enumerate(chain)
        ]

    def slowest(self, chain: Sequence[Link]) -> float:
        """The largest of a chain's stages and links."""
        if self.is_blocking:
            return max(self.held_by(chain))
        stages = [float(self.held[self.class_of[d], i, j]) for d, i, j in chain]
        pairs = itertools.pairwise(chain)
        links = [float(self.busy[a, b]) for (a, _, _), (b, _, _) in pairs]
        return max([*stages, *links, float(self.held_back[chain[-1][0]])])


def group(table: DeviceTable) -> tuple[ChainProblem, tuple[tuple[int, ...], ...]]:
    """The same problem over groups, and the devices of each group in order."""
    members: list[list[int]] = []
    by_signature: dict[tuple[int, bool, float, bytes, bytes], list[int]] = {}
    hop = table.hop.copy()
    np.fill_diagonal(hop, 0.0)  # nothing is sent from a device to itself
    outward, inward = np.sort(hop, axis=1), np.sort(hop, axis=0).T
    for device in range(len(hop)):
        signature = (
            int(table.class_of[device]),
            device == table.source,
            float(table.way_back[device]),
            outward[device].tobytes(),
            inward[device].tobytes(),
        )
        candidates = by_signature.setdefault(signature, [])
        for index in candidates:
            if _are_equal(hop, members[index][0], device):
                members[index].append(device)
                break
        else:
            candidates.append(len(members))
            members.append([device])
    first = np.array([devices[0] for devices in members], np.intp)
    last = np.array([devices[-1] for devices in members], np.intp)
    between = hop[np.ix_(first, first)]
    np.fill_diagonal(between, np.where(first == last, np.inf, hop[first, last]))
    problem = ChainProblem(
        stage=table.stage,
        class_of=table.class_of[first],
        count=np.array([len(devices) for devices in members], np.int32),
        hop=between,
        way_back=table.way_back[first],
        source=next(i for i, devices in enumerate(members) if devices[0] == table.source),
    )
    return problem, tuple(tuple(devices) for devices in members)


def name_devices(chain: Iterable[Link], members: tuple[tuple[int, ...], ...]) -> tuple[Link, ...]:
    """Give each stage of a chain over groups a device of its own, in order."""
    unused = [iter(devices) for devices in members]
    return tuple((next(unused[index]), start, stop) for index, start, stop in chain)


def name_groups(chain: Iterable[Link], members: tuple[tuple[int, ...], ...]) -> tuple[Link, ...]:
    """The chain over groups that a chain over devices is."""
    group_of = {device: index for index, devices in enumerate(members) for device in devices}
    return tuple((group_of[device], start, stop) for device, start, stop in chain)


def _are_equal(hop: Costs, one: int, other: int) -> bool:
    """Whether swapping the two devices changes no link."""
    swapped = np.arange(len(hop))
    swapped[[one, other]] = other, one
    return bool(
        (hop[one] == hop[other][swapped]).all() and (hop[:, one] == hop[swapped, other]).all()
    )

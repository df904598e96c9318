"""What the planner promises, measured: time, memory and certificates; brute force; a MILP.

    python benchmarks/planning.py bars            the paper's testbed and fleets
    python benchmarks/planning.py brute --cases 2000
    python benchmarks/planning.py milp --cases 60

A time is that of `make_plan`, from a profile in memory to a plan, the slowest of all seeds: the
processor's, which other work on the machine stretches less, and the clock's. With jitter all links
differ. Brute force and MILP referee three solvers: the least sum (latency), the least slowest stage
or link, and what throughput is planned by, the least interval of a number of groups.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from msgspec.structs import replace

sys.path.append(str(Path(__file__).parents[1] / "tests"))


from edgeshard.paper.testbed import Setting, testbed, unit_bytes, unit_seconds
from edgeshard.paper.testbed import devices as paper_devices
from edgeshard.planner import make_plan
from edgeshard.planner.bottleneck import smallest_bottleneck
from edgeshard.planner.chains import Link
from edgeshard.planner.cheapest import Effort, cheapest_chain
from edgeshard.planner.groups import DeviceTable, group
from edgeshard.planner.paced import best_paced
from edgeshard.schemas.common import Objective
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import LinkProfile, Profile
from support.chain_problems import every_chain, random_table, slowest_of, sum_of
from support.planner_cases import digest, make_device, make_link, make_model, make_profile, measured
from support.referee import best_by_milp

GIB = 2**30
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
Goal = Literal["latency", "slowest", "interval"]
GOALS = get_args(Goal)
ENTRY = 0.125  # what a step takes beside its chain


@dataclass(frozen=True)
class Hardware:
    """A type of device: how many, what each unit takes, what it may hold."""

    count: int
    seconds: Sequence[float]
    limit_bytes: int


MANY_SLOTS = 64  # enough to keep every stage of a chain busy


def profile_of(
    sizes: Sequence[int],
    types: Sequence[Hardware],
    mbps: Callable[[int, int], float],
    latency_seconds: float,
    hidden_size: int,
    jitter: float,
    seed: int,
) -> tuple[ModelManifest, Profile]:
    """A model of units of these sizes, and devices by type; device 0 is the source.

    Args:
        sizes: bytes of each unit.
        types: the source is one of the first.
        mbps: rate between two devices by their numbers.
        latency_seconds: of every link.
        hidden_size: fp32 values of a frame, over all sequences of a batch.
        jitter: links are this much faster or slower, each by its own, the same both ways.
        seed: of the jitter.
    """
    num_units = len(sizes)
    structures = [f"unit.{index}" for index in range(num_units)]
    model = replace(
        make_model(num_units - 2, sizes, structures=structures), hidden_size=hidden_size
    )
    made = []
    for kind, hardware in enumerate(types):
        by_structure = {
            unit.structure: seconds
            for unit, seconds in zip(model.units, hardware.seconds, strict=True)
        }
        units = measured(model, by_structure)
        made += [
            make_device(f"t{kind}-{index}", units, hardware.limit_bytes)
            for index in range(hardware.count)
        ]
    draw = np.random.default_rng(seed)
    links: list[LinkProfile] = []
    for a in range(len(made)):
        noise = draw.uniform(1 - jitter, 1 + jitter, len(made))
        for b in range(a):
            rate = mbps(a, b) * 1e6 / 8 * float(noise[b])
            one, other = made[a].name, made[b].name
            links.append(make_link(one, other, latency_seconds, rate))
            links.append(make_link(other, one, latency_seconds, rate))
    return model, make_profile(made, links)


def paper(hold: float, jitter: float, seed: int) -> tuple[ModelManifest, Profile]:
    """The paper's testbed with Llama2-7B at batch 4; `hold` times its weights."""
    kinds = paper_devices(Setting())
    cloud = kinds.index("rtx-3090")
    types = [
        Hardware(
            kinds.count(kind),
            unit_seconds("llama2-7b", kind, 1.0),
            int(testbed()["device_types"][kind]["usable_gib"] * GIB),
        )
        for kind in dict.fromkeys(kinds)
    ]
    order = [kind for kind in dict.fromkeys(kinds) for _ in range(kinds.count(kind))]
    cloud = order.index("rtx-3090")
    return profile_of(
        [int(size * hold) for size in unit_bytes("llama2-7b")],
        types,
        lambda a, b: 1.0 if {a, b} == {0, cloud} else 50.0,
        testbed()["models"]["llama2-7b"]["hop_overhead_ms"] / 1e3,
        4096 * 4,
        jitter,
        seed,
    )


def fleet(
    num_types: int, count: int, room: float, jitter: float, seed: int
) -> tuple[ModelManifest, Profile]:
    """Random types with room for `room` times a model of 82 units, two groups of links."""
    draw = np.random.default_rng(seed)
    block_seconds = draw.uniform(2e-3, 40e-3, num_types)
    sizes = [GIB, *[int(3.4 * GIB)] * 80, GIB]
    limits = draw.uniform(4, 40, num_types)
    limits *= room * sum(sizes) / GIB / (count * limits.sum())
    rates = draw.uniform(50, 1000, (num_types, num_types))
    types = [
        Hardware(
            count,
            [0.3 * seconds, *[seconds] * 80, 1.2 * seconds],
            int(max(limit, 3.5) * GIB),
        )
        for seconds, limit in zip(block_seconds.tolist(), limits.tolist(), strict=True)
    ]

    def mbps(a: int, b: int) -> float:
        low, high = sorted((a // count, b // count))
        return float(rates[low, high])

    return profile_of(sizes, types, mbps, 1e-3, 8192, jitter, seed)


def bars(seeds: int) -> None:
    """Print a row for each testbed, fleet and objective."""
    print("| devices | units | links | objective | optimal | largest gap | CPU | wall | peak |")
    print("| --- | --: | --- | --- | --: | --: | --: | --: | --: |")
    row("paper's 15, 7B", seeds, partial(paper, 1.0))
    row("paper's 15, 11 times the weights", seeds, partial(paper, 11.0))
    for room in (8.0, 2.0, 1.1):
        row(f"100 of 4 types, room {room}", seeds, partial(fleet, 4, 25, room))
    row("1000 of 8 types, room 3", 1, partial(fleet, 8, 125, 3.0))


def row(name: str, seeds: int, make: Callable[[float, int], tuple[ModelManifest, Profile]]) -> None:
    """Plan for several seeds, with equal links and with jitter, for both objectives."""
    for jitter in (0.0, 0.2):
        for objective in OBJECTIVES:
            gaps, walls, calls = [], [], []
            for seed in range(seeds):
                model, profile = make(jitter, seed)
                source = profile.devices[0].name
                begin, wall = time.process_time(), time.perf_counter()
                slots = MANY_SLOTS if objective == "throughput" else 1
                plan = make_plan(
                    model, digest("model"), profile, source, objective, 64, slots, 32, 64
                )
                calls.append(time.process_time() - begin)
                walls.append(time.perf_counter() - wall)
                assert plan.certificate is not None
                gaps.append(plan.certificate.gap)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"| {name} | {len(model.units)} | {'jitter 20 %' if jitter else 'equal'} | "
                f"{objective} | {sum(gap == 0 for gap in gaps)} of {seeds} | {max(gaps):.2%} | "
                f"{max(calls) * 1e3:.0f} ms | {max(walls) * 1e3:.0f} ms | {peak} MiB |",
                flush=True,
            )


def compare(
    name: str, num_cases: int, draw: Callable[[np.random.Generator], DeviceTable], by: str
) -> bool:
    """Count where the planner and the other opinion differ; whether none does."""
    generator = np.random.default_rng(20)
    tables = [draw(generator) for _ in range(num_cases)]
    numbers = generator.integers(1, 9, num_cases).tolist()
    is_fine = True
    for goal in GOALS:
        differ = unproven = undecided = impossible = 0
        for table, groups in zip(tables, numbers, strict=True):
            found, bound = planned(table, goal, groups)
            expected = truth(table, goal, groups, by)
            if expected is None:
                undecided += 1
                continue
            impossible += math.isinf(expected)
            differ += not math.isclose(found, expected, rel_tol=1e-6)
            unproven += not math.isclose(found, bound, rel_tol=1e-9)
        print(
            f"| {name} | {goal} | {num_cases - undecided} | {impossible} | {differ} | {unproven} |",
            flush=True,
        )
        is_fine &= differ == 0
    return is_fine


def planned(table: DeviceTable, goal: Goal, groups: int) -> tuple[float, float]:
    """The planner's figure and its bound."""
    if goal == "latency":
        best = cheapest_chain(group(table)[0], Effort())
        return best.cost, best.bound
    if goal == "slowest":
        slowest = smallest_bottleneck(table, Effort())
        return slowest.seconds, slowest.bound
    paced = best_paced(table, ENTRY, groups, Effort())
    return paced.seconds, paced.bound


def truth(table: DeviceTable, goal: Goal, groups: int, by: str) -> float | None:
    """The other opinion's figure; None where it took too long."""
    if by == "milp":
        if goal != "interval":
            return best_by_milp(table, goal == "latency").seconds
        return best_by_milp(table, False, groups=groups, entry_seconds=ENTRY).seconds

    def cost(chain: tuple[Link, ...]) -> float:
        if goal == "latency":
            return sum_of(table, chain)
        if goal == "slowest":
            return slowest_of(table, chain)
        return max(slowest_of(table, chain), (ENTRY + sum_of(table, chain)) / groups)

    return min(map(cost, every_chain(table)), default=math.inf)


def small(generator: np.random.Generator) -> DeviceTable:
    """Up to 6 units on up to 5 devices, some links missing."""
    counts = generator.integers(1, 3, 2).tolist()
    table = random_table(
        generator,
        int(generator.integers(2, 7)),
        counts,
        float(generator.choice([0.0, 0.5])),
        float(generator.uniform(0.9, 3.0)),
    )
    missing = generator.random(table.hop.shape) < generator.choice([0.0, 0.3])
    table.hop[missing] = np.inf
    return table


def medium(generator: np.random.Generator) -> DeviceTable:
    """8 to 14 units on 6 to 9 devices."""
    counts = generator.integers(1, 4, 3).tolist()
    return random_table(
        generator,
        int(generator.integers(8, 15)),
        counts,
        float(generator.choice([0.0, 0.3])),
        float(generator.uniform(1.1, 3.0)),
    )


def main() -> int:
    """Run what was asked for; 1 where the planner is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bars", "brute", "milp"])
    parser.add_argument("--cases", type=int, default=2000, help="random cases for each objective")
    parser.add_argument("--seeds", type=int, default=5, help="fleets of each kind")
    given = parser.parse_args()
    if given.what == "bars":
        bars(given.seeds)
        return 0
    print("| against | solver | cases | of them impossible | mismatches | not proven |")
    print("| --- | --- | --: | --: | --: | --: |")
    draw = small if given.what == "brute" else medium
    return 0 if compare(given.what, given.cases, draw, given.what) else 1


if __name__ == "__main__":
    sys.exit(main())

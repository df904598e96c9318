"""On paper: 10, 100 and 1,000 devices; how planning and throughput grow, and when to replicate.

    python benchmarks/fleet_scale.py [--out docs/paper] [--models llama2-7b llama2-70b]

Fleets have the paper's mix of devices (12 : 2 : 1) and one bandwidth. With r replicas the devices
of each type are dealt out in turn to r chains, each with a source of its own; their rates add up. A
rate is that of enough batches in flight, so a long chain needs many. A replica that does not fit
counts nothing. Planning time is the processor's, of one `best_partition` over the whole fleet.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from edgeshard.errors import PlanError
from edgeshard.paper.calibrate import factor_of
from edgeshard.paper.plots import save
from edgeshard.paper.studies import BATCH
from edgeshard.paper.testbed import Kind, Model, Setting, cost_table, testbed
from edgeshard.planner.partition import best_partition
from edgeshard.planner.predict import latency_seconds
from edgeshard.schemas.common import Objective

SIZES = (10, 100, 1000)
MBPS = (50.0, 1000.0)
REPLICAS = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 1000)
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")


@dataclass(frozen=True)
class Planned:
    """One chain over a fleet: what planning took and what came out."""

    model: str
    mbps: float
    num_devices: int
    objective: str
    planning_cpu_seconds: float
    objective_ms: float
    gap: float
    num_stages: int


@dataclass(frozen=True)
class Replicated:
    """Several chains over a fleet; `num_in_flight` is what fills them all, in batches."""

    model: str
    mbps: float
    num_devices: int
    num_replicas: int
    num_fitting: int
    tokens_per_second: float
    num_used: int
    num_in_flight: float


def mix(num_devices: int) -> list[Kind]:
    """Devices in the testbed's proportions, at least one of each kind, AGX Orin first."""
    types = testbed()["device_types"]
    total = sum(types[kind]["count"] for kind in get_args(Kind))
    counts = {
        kind: max(1, round(num_devices * types[kind]["count"] / total)) for kind in get_args(Kind)
    }
    counts["agx-orin"] += num_devices - sum(counts.values())
    return [kind for kind in get_args(Kind) for _ in range(counts[kind])]


def setting_of(model: Model, mbps: float, kinds: Sequence[Kind]) -> Setting:
    """A fleet with one bandwidth; its first device is the source."""
    return Setting(
        model=model,
        factor=factor(model),
        source=kinds[0],
        kinds=tuple(kinds[1:]),
        source_cloud_mbps=mbps,
        other_mbps=mbps,
    )


@cache
def factor(model: Model) -> float:
    """The model's factor over the whole testbed."""
    return factor_of(model)


def planning(model: Model, mbps: float, num_devices: int) -> Iterator[Planned]:
    """One chain for each objective."""
    costs = cost_table(setting_of(model, mbps, mix(num_devices)))
    for objective in OBJECTIVES:
        begin = time.process_time()
        best = best_partition(costs, objective)
        seconds = time.process_time() - begin
        gap = best.seconds / best.bound_seconds - 1
        shape = (best.seconds * 1e3, gap, len(best.spans))
        yield Planned(model, mbps, num_devices, objective, seconds, *shape)


@cache
def chain_of(setting: Setting) -> tuple[float, int, float] | None:
    """Tokens per second, devices, and batches that fill it; None where the model does not fit."""
    costs = cost_table(setting)
    try:
        best = best_partition(costs, "throughput")
    except PlanError:
        return None
    fill = latency_seconds(costs, best.spans) / best.seconds
    return BATCH / best.seconds, len(best.spans), fill


def replicated(model: Model, mbps: float, num_devices: int, num_replicas: int) -> Replicated:
    """The fleet dealt out to chains."""
    kinds = mix(num_devices)
    groups = [kinds[first::num_replicas] for first in range(num_replicas)]
    chains = [chain_of(setting_of(model, mbps, group)) for group in groups]
    rates, used, fills = zip(*(chain or (0.0, 0, 0.0) for chain in chains), strict=True)
    fitting = sum(chain is not None for chain in chains)
    sums = (sum(rates), sum(used), sum(fills))
    return Replicated(model, mbps, num_devices, num_replicas, fitting, *sums)


def table(rows: Sequence[Planned] | Sequence[Replicated]) -> str:
    """Rows as Markdown."""
    names = list(asdict(rows[0]))
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in asdict(row).values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Replicated], path: Path) -> None:
    """Tokens per second over replicas; a panel for each model and bandwidth."""
    panels = list(dict.fromkeys((row.model, row.mbps) for row in rows))
    picture = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for size in SIZES:
            points = [
                (row.num_replicas, row.tokens_per_second)
                for row in rows
                if (row.model, row.mbps) == panel and row.num_devices == size and row.num_fitting
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"{size} devices")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{panel[0]}, {panel[1]:.0f} Mbit/s")
        axes.set_xlabel("replicas")
        axes.set_ylabel("tokens/s")
        axes.legend(fontsize="small")
    save(picture, path, "replicas of a chain by fleet")


def write(path: Path, rows: Sequence[Planned] | Sequence[Replicated]) -> None:
    """Rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main() -> None:
    """Print both tables; with --out, write them, and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", choices=get_args(Model), default=["llama2-7b"])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    words = parser.parse_args()
    cases = [(model, mbps, size) for model in words.models for mbps in MBPS for size in words.sizes]
    planned = [row for case in cases for row in _fitting(case)]
    print(table(planned), flush=True)
    replicas = [
        replicated(*case, number) for case in cases for number in REPLICAS if number <= case[2]
    ]
    print(table(replicas), flush=True)
    if words.out is not None:
        words.out.mkdir(parents=True, exist_ok=True)
        write(words.out / "fleet-scale-planning.csv", planned)
        write(words.out / "fleet-scale-replicas.csv", replicas)
        plot(replicas, words.out / "fleet-scale-replicas.svg")
        tables = f"# Fleets\n\n{table(planned)}\n{table(replicas)}"
        (words.out / "fleet-scale.md").write_text(tables, "utf-8")


def _fitting(case: tuple[Model, float, int]) -> list[Planned]:
    try:
        return list(planning(*case))
    except PlanError:
        return []


if __name__ == "__main__":
    main()

"""How near a plan is to what its chain takes: profile, plan and run, anew each round.

    python -m benchmarks.predicted --store store --model int4 --work work --json predicted.json

A round profiles three agents on loopback from nothing, plans for latency, deploys, and measures one
request after the other. A profile ages with its machine's speed, so rounds pair what lies minutes
apart; the error of all rounds is that of the median prediction to the median measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chains import spread
from edgeshard.artifacts.store import Store
from edgeshard.chain_bench import measured_ms
from edgeshard.local_run import running_chain
from edgeshard.runtime.client import Client

CONTEXT = 2048


@dataclass(frozen=True)
class Round:
    """Milliseconds a token: the plan's, and one sample for each request.

    Attributes:
        starts: first unit of each stage.
    """

    starts: tuple[int, ...]
    predicted_ms: float
    chain_ms: tuple[float, ...]

    @property
    def measured_ms(self) -> float:
        """Median of the requests."""
        return statistics.median(self.chain_ms)

    @property
    def error(self) -> float:
        """Of predicted to measured."""
        return self.predicted_ms / self.measured_ms - 1


def one_round(work: Path, store: Store, name: str, cores: tuple[int, ...], requests: int) -> Round:
    """Profile, plan, deploy, measure; nothing is left of it."""
    model, blob = store.model(name)
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        running_chain(Path(folder), store, model, blob, context=CONTEXT, cores=cores) as running,
        Client.connect(running.local.cluster_path, running.local.key_path) as client,
    ):
        measured_ms(client)  # warms up
        samples = tuple(measured_ms(client)[1] for _ in range(requests))
    starts = tuple(stage.start for stage in running.plan.stages)
    return Round(starts, running.plan.token_seconds * 1e3, samples)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the devices' stores")
    parser.add_argument("--cores", type=int, nargs="*", default=[], help="to pin every stage to")
    parser.add_argument("--requests", type=int, default=5, help="measured in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    store, cores, rounds = Store(chosen.store), tuple(chosen.cores), []
    print("| cuts | predicted, ms a token | measured | error |\n| --- | --- | --- | --- |")
    for _ in range(chosen.rounds):
        rounds.append(one_round(chosen.work, store, chosen.model, cores, chosen.requests))
        one = rounds[-1]
        measured = spread(one.chain_ms, 2)
        starts = ", ".join(map(str, one.starts))
        print(f"| {starts} | {one.predicted_ms:.2f} | {measured} | {one.error:+.1%} |", flush=True)
    predicted = [one.predicted_ms for one in rounds]
    measured_all = [one.measured_ms for one in rounds]
    error = statistics.median(predicted) / statistics.median(measured_all) - 1
    print(f"| all | {spread(predicted, 2)} | {spread(measured_all, 2)} | {error:+.1%} |")
    if chosen.json:
        found = {"error_of_medians": error, "rounds": [asdict(one) for one in rounds]}
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

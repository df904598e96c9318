"""What does a stage that computes next to nothing add to a token, processes and sockets included?

    python -m benchmarks.hops --rounds 15

Two chains of real workers over CURVE on loopback, one of SHORT stages and one of LONG, run the
tests' double, which has no kernels. In each round both answer the same request, in turns; the
difference of the times a token, divided by the stages that one has more, is what a stage and its
hop add: unpacking, the stage's checks, the double's few array operations, packing, the socket and
waking up. The order changes from round to round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from edgeshard.runtime.client import Client

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.runtime_chain import connect, deploy_double, local_cluster

SHORT, LONG = 3, 6
NUM_TOKENS = 50


def token_us(client: Client) -> float:
    """Median microseconds from a token to the next."""
    with client.generate(
        "hello", raw=True, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True
    ) as generation:
        return statistics.median(generation.finish().token_seconds) * 1e6


def measure(folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Microseconds a token of the short and the long chain, a pair for each round."""
    pairs = []
    with (
        local_cluster(folder / "short", num_devices=SHORT) as short,
        local_cluster(folder / "long", num_devices=LONG) as long,
    ):
        deploy_double(short)
        deploy_double(long)
        with connect(short) as first, connect(long) as second:
            for number in range(rounds + 1):
                clients = [first, second] if number % 2 else [second, first]
                times = {id(client): token_us(client) for client in clients}
                if number:  # the first warms up
                    pairs.append((times[id(first)], times[id(second)]))
    return pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        pairs = measure(Path(folder), rounds)
    rows = {
        f"token, {SHORT} stages": [short for short, _ in pairs],
        f"token, {LONG} stages": [long for _, long in pairs],
        "added by a stage": [(long - short) / (LONG - SHORT) for short, long in pairs],
    }
    for name, values in rows.items():
        middle = statistics.median(values)
        print(f"{name:<18} {middle:7.0f} us ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()

"""Ten times more requests than a chain can answer: do the accepted ones keep their speed?

    python -m benchmarks.overload --seconds 60
    python -m benchmarks.overload --seconds 60 --store store --model int4 --work work --cuts 11 21
    python -m benchmarks.overload --seconds 60 --client-first

First the full batch alone: a client for each slot, one request behind the other; they give the rate
that the chain can do. Then ten times that rate for some seconds, whatever comes back. Stages are
processes of their own on loopback: of a model with --store, else three of made-up units, so that it
is the serving that is measured and no kernel. The memory of all of them is read when the queue is
full and every second from then on.

The client needs the cores that the stages keep busy, and its own waits for one count as the
chain's. With --client-first (Linux, root) it gets a core as soon as it asks for one, as on a
machine of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks.chains import chain, spread
from edgeshard.artifacts.store import Store
from edgeshard.errors import BusyError
from edgeshard.runtime.child import settle
from edgeshard.runtime.client import AsyncClient
from edgeshard.runtime.local import LocalCluster

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.runtime_chain import deploy_double, family, local_cluster
from support.runtime_double import SLOTS

NUM_TOKENS = 50
TIMES = 10
CONTEXT = 256
FILL_SECONDS = 12.0  # the queue of 64 is full by then
GIVE_UP_SECONDS = 30.0
REFUSAL_MS = 50.0
FIRST = -15  # niceness


@dataclass
class Seen:
    """What the clients saw."""

    token_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)
    answers: int = 0
    late_ms: list[float] = field(default_factory=list)  # requests of an overload, behind their time
    given_up: int = 0  # by their clients, when the time was over


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Milliseconds, MiB of all processes, and counts.

    Attributes:
        every_ms: between requests of the overload.
        alone_p99_ms: of a token, every slot taken and nobody waiting.
        ratio: of the accepted requests' p99 to that.
        refusal_p50_ms: connecting included, as the client sees it.
        refusals_late: that took 50 ms or more.
        client_late_p99_ms: what the client itself was late with a request, busy with others.
        answers_after: of a full batch for 5 s, once the overload is over: it does not hang.
    """

    every_ms: float
    alone_answers: int
    alone_p99_ms: float
    answers: int
    p99_ms: float
    ratio: float
    refused: int
    refusal_p50_ms: float
    refusal_p99_ms: float
    refusal_max_ms: float
    refusals_late: int
    client_late_p99_ms: float
    client_late_max_ms: float
    given_up: int
    first_mib: float
    last_mib: float
    largest_mib: float
    answers_after: int


async def ask(client: AsyncClient, seen: Seen) -> None:
    """One request, to whatever end."""
    started = time.perf_counter()
    try:
        async with client.generate(
            "hello", raw=True, max_tokens=NUM_TOKENS, ignore_eos=True
        ) as generation:
            result = await generation.finish()
    except BusyError:
        seen.refusal_ms.append((time.perf_counter() - started) * 1e3)
    else:
        seen.answers += 1
        seen.token_ms += [seconds * 1e3 for seconds in result.token_seconds]


async def full_batch(client: AsyncClient, slots: int, seconds: float) -> Seen:
    """A request in each slot, the next one behind it."""
    seen, until = Seen(), time.perf_counter() + seconds

    async def again() -> None:
        while time.perf_counter() < until:
            await ask(client, seen)

    await asyncio.gather(*(again() for _ in range(slots)))
    return seen


async def overload(client: AsyncClient, every: float, seconds: float) -> Seen:
    """A new request every so many seconds; those that wait in the end are given up.

    Raises:
        TimeoutError: one cannot be given up.
    """
    seen, until = Seen(), time.perf_counter() + seconds
    running: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        seen.late_ms.append((time.perf_counter() - due) * 1e3)
        task = asyncio.create_task(ask(client, seen))
        running.add(task)
        task.add_done_callback(running.discard)
        due += every
    waiting = list(running)
    for task in waiting:
        task.cancel()
    async with asyncio.timeout(GIVE_UP_SECONDS):
        await asyncio.gather(*waiting, return_exceptions=True)
    seen.given_up = len(waiting)
    return seen


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else float("nan")


@contextlib.contextmanager
def going_first() -> Iterator[None]:
    """Let this thread, and those that it starts, have a core before all others.

    Raises:
        PermissionError: only root may.
    """

    def be(niceness: int) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        session = Path("/proc/self/autogroup")  # where niceness counts within a session only
        if session.exists():
            session.write_text(f"{niceness}\n", encoding="ascii")

    be(FIRST)
    try:
        yield
    finally:
        be(0)


async def measure(
    local: LocalCluster, everyone: list[psutil.Process], slots: int, seconds: float
) -> Outcome:
    """Both loads; memory is read every second of the second one."""
    mebibytes: list[float] = []

    async def watch() -> None:
        while True:
            mebibytes.append(sum(process.memory_info().rss for process in everyone) / 2**20)
            await asyncio.sleep(1.0)

    async with AsyncClient.connect(local.cluster_path, local.key_path) as client:
        await full_batch(client, slots, 2.0)
        started = time.perf_counter()
        alone = await full_batch(client, slots, 10.0)
        every = (time.perf_counter() - started) / alone.answers / TIMES
        await overload(client, every, FILL_SECONDS)
        watching = asyncio.create_task(watch())
        many = await overload(client, every, seconds)
        watching.cancel()
        after = await full_batch(client, slots, 5.0)
    return Outcome(
        every_ms=every * 1e3,
        alone_answers=alone.answers,
        alone_p99_ms=p99(alone.token_ms),
        answers=many.answers,
        p99_ms=p99(many.token_ms),
        ratio=p99(many.token_ms) / p99(alone.token_ms),
        refused=len(many.refusal_ms),
        refusal_p50_ms=statistics.median(many.refusal_ms),
        refusal_p99_ms=p99(many.refusal_ms),
        refusal_max_ms=max(many.refusal_ms),
        refusals_late=sum(1 for one in many.refusal_ms if one >= REFUSAL_MS),
        client_late_p99_ms=p99(many.late_ms),
        client_late_max_ms=max(many.late_ms),
        given_up=many.given_up,
        first_mib=mebibytes[0],
        last_mib=mebibytes[-1],
        largest_mib=max(mebibytes),
        answers_after=after.answers,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", type=Path, help="measure a model in it, not the made-up units")
    parser.add_argument("--model", help="its name")
    parser.add_argument("--work", type=Path, help="folder on the store's disk")
    parser.add_argument("--cuts", type=int, nargs="*", default=[], help="first units of stages")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--client-first", action="store_true", help="see above; Linux, root")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    outcomes = []
    settle()  # what the client's own collector costs is not the chain's
    with contextlib.ExitStack() as stack:
        if chosen.store:
            running = stack.enter_context(
                chain(
                    chosen.work,
                    Store(chosen.store),
                    chosen.model,
                    chosen.cuts,
                    threads=chosen.threads,
                    context=CONTEXT,
                    slots=chosen.slots,
                    groups=chosen.groups,
                )
            )
            local, everyone, slots = running.local, running.everyone, chosen.slots
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            local, slots = stack.enter_context(local_cluster(Path(folder))), SLOTS
            deploy_double(local, "slow")
            everyone = family(local)
        if chosen.client_first:
            stack.enter_context(going_first())
        for _ in range(chosen.rounds):
            outcomes.append(asyncio.run(measure(local, everyone, slots, chosen.seconds)))
            print(asdict(outcomes[-1]), flush=True)
    print("| | median (spread) |\n| --- | --- |")
    for name in asdict(outcomes[0]):
        print(f"| {name} | {spread([getattr(one, name) for one in outcomes])} |")
    if chosen.json:
        text = json.dumps([asdict(one) for one in outcomes], indent=2)
        chosen.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A 2,000-token prompt over two stages of a core each, in chunks, alone and beside a decode.

    python -m benchmarks.prefill_chunks --store store --model int4 --work work --json chunks.json

A chain for each `beside_steps` and one for the whole prompt in a step, workers pinned; all of them
wait while one is measured, in turns. First the prompt alone, in one step and in chunks; then beside
another request that decodes: the prompt's time to first token, and what a token of the other one
takes meanwhile, to what it took right before. Times are ratios to the prompt alone in one step. No
prompt starts like an earlier one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chains import chain, pin, spread
from edgeshard.artifacts.store import Store
from edgeshard.runtime.client import AsyncClient
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.schedule_limits import CHUNK_TOKENS

WORDS = (
    "river",
    "town",
    "and",
    "the",
    "of",
    "in",
    "to",
    "is",
    "was",
    "for",
    "with",
    "on",
    "at",
    "by",
)
PROMPT_TOKENS = 2000
CONTEXT = 4096
BESIDE_TOKENS = CONTEXT - 512  # more than it can get to; it is cancelled
ALONE_TOKENS = 60  # of the other request, measured before the prompt comes


@dataclass(frozen=True)
class Round:
    """Of a prompt beside another request.

    Attributes:
        slowdown: of the other request's tokens while the prompt is read, on average.
        pause_ms: the longest time without such a token.
    """

    beside_seconds: float
    slowdown: float
    pause_ms: float
    token_ms: float
    prompt_tokens: int


def prompt_of(number: int) -> str:
    """Words that are a token each, in another order for each number."""
    generator = random.Random(number)
    return " ".join(generator.choices(WORDS, k=PROMPT_TOKENS))


async def first_token(client: AsyncClient, prompt: str) -> tuple[float, int]:
    """Time to first token, and the prompt's tokens."""
    async with client.generate(prompt, raw=True, max_tokens=1, ignore_eos=True) as generation:
        result = await generation.finish()
    if result.kept_tokens:
        raise SystemExit(f"{result.kept_tokens} tokens of the prompt were reused")
    return result.first_token_seconds, result.prompt_tokens


async def alone(local: LocalCluster, numbers: Iterator[int]) -> float:
    """Seconds to the first token of a prompt that has the chain to itself."""
    async with AsyncClient.connect(local.cluster_path, local.key_path) as client:
        return (await first_token(client, prompt_of(next(numbers))))[0]


async def one_round(local: LocalCluster, numbers: Iterator[int]) -> Round:
    """The prompt beside another request."""
    async with AsyncClient.connect(local.cluster_path, local.key_path) as client:
        times: list[float] = []

        async def decode() -> None:
            async with client.generate(
                f"{next(numbers)} and a town", raw=True, max_tokens=BESIDE_TOKENS, ignore_eos=True
            ) as generation:
                async for _ in generation:
                    times.append(time.perf_counter())

        other = asyncio.create_task(decode())
        while len(times) <= ALONE_TOKENS:
            await asyncio.sleep(0.05)
        before = (times[-1] - times[8]) / (len(times) - 9)
        started = time.perf_counter()
        beside, length = await first_token(client, prompt_of(next(numbers)))
        during = [at for at in times if started < at <= started + beside]
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
    pauses = [b - a for a, b in itertools.pairwise([started, *during, started + beside])]
    return Round(
        beside_seconds=beside,
        slowdown=beside / max(1, len(during)) / before,
        pause_ms=max(pauses) * 1e3,
        token_ms=before * 1e3,
        prompt_tokens=length,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder on the store's disk")
    parser.add_argument("--cut", type=int, required=True, help="first unit of the second stage")
    parser.add_argument("--beside-steps", type=int, nargs="+", default=[0, 48])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    store, rests = Store(chosen.store), sorted(chosen.beside_steps)
    numbers = itertools.count()
    found: dict[int, list[Round]] = {rest: [] for rest in rests}
    whole: list[float] = []
    chunked: list[float] = []
    with contextlib.ExitStack() as stack:
        locals_: dict[int | None, LocalCluster] = {}
        for rest in (None, *rests):
            running = stack.enter_context(
                chain(
                    chosen.work / f"beside-{rest}",
                    store,
                    chosen.model,
                    (chosen.cut,),
                    threads=1,
                    chunk_tokens=CONTEXT if rest is None else CHUNK_TOKENS,
                    beside_steps=rest or 0,
                    context=CONTEXT,
                    slots=2,
                    groups=2,
                )
            )
            locals_[rest] = running.local
            for core, worker in enumerate(running.workers):
                pin(worker, core)
        for local in locals_.values():
            asyncio.run(alone(local, numbers))  # pages are touched, buffers made
        for number in range(chosen.rounds):
            whole.append(asyncio.run(alone(locals_[None], numbers)))
            chunked.append(asyncio.run(alone(locals_[rests[0]], numbers)))
            print(f"round {number + 1}, alone: {whole[-1]:.3f}, {chunked[-1]:.3f}", flush=True)
            for rest in rests:
                found[rest].append(asyncio.run(one_round(locals_[rest], numbers)))
                print(f"round {number + 1}, {rest}:", asdict(found[rest][-1]), flush=True)
    shares = [part / all_ for part, all_ in zip(chunked, whole, strict=True)]
    print(
        f"alone: in one step {spread(whole)} s, in chunks {spread(chunked)}, {spread(shares)} of it"
    )
    print("ms of a token alone: ", end="")
    print(spread([one.token_ms for rows in found.values() for one in rows]))
    print("| beside_steps | first token, s | to one step alone | slowdown | pause, ms |")
    print("| --: | --- | --- | --- | --- |")
    for rest, rows in found.items():
        beside = [one.beside_seconds / seconds for one, seconds in zip(rows, whole, strict=True)]
        print(
            f"| {rest} | {spread([one.beside_seconds for one in rows])} | {spread(beside)} "
            f"| {spread([one.slowdown for one in rows])} "
            f"| {spread([one.pause_ms for one in rows], 0)} |"
        )
    if chosen.json:
        rounds = {rest: [asdict(one) for one in rows] for rest, rows in found.items()}
        plain = {"in_one_step": whole, "in_chunks": chunked, "beside_steps": rounds}
        chosen.json.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

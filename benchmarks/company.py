"""Do greedy answers depend on who else is served? Each alone, then all as one batch.

    python -m benchmarks.company --store STORE --model int4 --model mixed --rows 4 --tokens 200

One process, the whole model as one shard. Prompts are pieces of `edgeshard/texts/lincoln.txt` of
different lengths. For each answer the number of tokens before the first other one, or `all`; beside
it what the profiler's comparison of one step says (docs/adr/0038-rows-alone-and-in-company.md).

With `--chain DIR --cuts 13 24` the same over stages on loopback, of one thread each: with a step of
its own for each request, and with one for all; and the tokens a second of all together.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.chains import chain
from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.client import Client
from edgeshard.runtime.points import Stepper
from edgeshard.runtime.session import ShardSession

APART = 700  # tokens of the text from one prompt's start to the next one's
SHORTEST, LONGER = 40, 7


def prompts_of(store: Store, name: str, rows: int) -> list[list[int]]:
    """Pieces of the text, each longer than the one before, odd and even lengths in turns."""
    tokenizer = Tokenizer.from_str(_tokenizer(store, name))
    text = resources.files("edgeshard.texts").joinpath("lincoln.txt").read_text("utf-8")
    ids = tokenizer.encode(text).ids
    return [
        list(ids[APART * row : APART * row + SHORTEST + LONGER * row]) for row in range(1, rows + 1)
    ]


def _tokenizer(store: Store, name: str) -> str:
    model, _ = store.model(name)
    if model.tokenizer is None:
        raise SystemExit(f"{name} has no tokenizer")
    return store.read(model.tokenizer).decode()


def answers(
    session: ShardSession, prompts: list[list[int]], slots: list[int], num_tokens: int
) -> list[list[int]]:
    """Greedy tokens of neighbouring slots, their prompts one by one and their steps together."""
    found = [[int(session.run(slot, [0], np.array([prompts[slot]]))[0].argmax())] for slot in slots]
    for step in range(num_tokens - 1):
        places = [len(prompts[slot]) + step for slot in slots]
        last = np.array([tokens[-1:] for tokens in found], np.int64)
        logits = session.run(slots[0], places, last)
        for tokens, row in zip(found, logits, strict=True):
            tokens.append(int(row.argmax()))
    return found


def same(one: list[int], other: list[int]) -> str:
    """How many tokens are the same before the first that is not."""
    differ = (index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return str(next(differ, "all"))


def one_process(store: Store, name: str, rows: int, num_tokens: int, threads: int) -> None:
    """Compare in this process and print a line."""
    model, blob = store.model(name)
    prompts, slots = prompts_of(store, name, rows), list(range(rows))
    shard, _ = fuse(store, model, blob, 0, len(model.units))
    context = max(map(len, prompts)) + num_tokens
    session = ShardSession.open(store, shard, threads=threads, context=context, slots=rows)
    alike = all(Stepper(session).rows_alike(8, count) for count in range(2, rows + 1))
    alone = [answers(session, prompts, [slot], num_tokens)[0] for slot in slots]
    together = answers(session, prompts, slots, num_tokens)
    counts = ", ".join(map(same, alone, together))
    print(f"{name}: rows {'alike' if alike else 'differ'}; same tokens: {counts}", flush=True)
    session.close()


def over_a_chain(
    work: Path, store: Store, name: str, cuts: Sequence[int], rows: int, num_tokens: int
) -> None:
    """Compare over stages, with every request's steps apart and with all in one."""
    texts = [
        Tokenizer.from_str(_tokenizer(store, name)).decode(ids)
        for ids in prompts_of(store, name, rows)
    ]
    for groups in (rows, 1):
        with (
            tempfile.TemporaryDirectory(dir=work) as folder,
            chain(Path(folder), store, name, cuts, threads=1, slots=rows, groups=groups) as made,
            Client.connect(made.local.cluster_path, made.local.key_path) as client,
        ):

            def ask(text: str, client: Client = client) -> list[int]:
                with client.generate(
                    text, raw=True, max_tokens=num_tokens, temperature=0, ignore_eos=True
                ) as generation:
                    return list(generation.finish().token_ids)

            alone = [ask(text) for text in texts]
            started = time.perf_counter()
            with ThreadPoolExecutor(rows) as pool:
                together = list(pool.map(ask, texts))
            rate = rows * num_tokens / (time.perf_counter() - started)
        counts = ", ".join(map(same, alone, together))
        said = f"{len(cuts) + 1} stages, {groups} groups of {rows // groups}"
        print(f"{name}, {said}: same tokens: {counts}; {rate:.1f} tokens/s", flush=True)


def main() -> None:
    """Compare and print, a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chain", type=Path, help="folder for the devices' stores")
    parser.add_argument("--cuts", type=int, nargs="+", default=[13, 24])
    given = parser.parse_args()
    store = Store(given.store)
    for name in given.model:
        one_process(store, name, given.rows, given.tokens, given.threads)
        if given.chain is not None:
            given.chain.mkdir(parents=True, exist_ok=True)
            over_a_chain(given.chain, store, name, given.cuts, given.rows, given.tokens)


if __name__ == "__main__":
    main()

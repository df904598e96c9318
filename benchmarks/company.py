"""Do greedy answers depend on who else is served? Each alone, then all as one batch.

    python -m benchmarks.company --store STORE --model int4 --model mixed --rows 4 --tokens 200

One process, the whole model as one shard. Prompts are pieces of `edgeshard/texts/lincoln.txt` of
different lengths. For each answer the number of tokens before the first other one, or `all`; beside
it what the profiler's comparison of one step says (docs/adr/0038-rows-alone-and-in-company.md).
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.points import Stepper
from edgeshard.runtime.session import ShardSession

APART = 700  # tokens of the text from one prompt's start to the next one's
SHORTEST, LONGER = 40, 7


def prompts_of(store: Store, name: str, rows: int) -> list[list[int]]:
    """Pieces of the text, each longer than the one before, odd and even lengths in turns."""
    model, _ = store.model(name)
    if model.tokenizer is None:
        raise SystemExit(f"{name} has no tokenizer")
    tokenizer = Tokenizer.from_str(store.read(model.tokenizer).decode())
    text = resources.files("edgeshard.texts").joinpath("lincoln.txt").read_text("utf-8")
    ids = tokenizer.encode(text).ids
    return [
        list(ids[APART * row : APART * row + SHORTEST + LONGER * row]) for row in range(1, rows + 1)
    ]


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


def main() -> None:
    """Compare and print, a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    store, rows = Store(given.store), list(range(given.rows))
    for name in given.model:
        model, blob = store.model(name)
        prompts = prompts_of(store, name, given.rows)
        shard, _ = fuse(store, model, blob, 0, len(model.units))
        context = max(map(len, prompts)) + given.tokens
        session = ShardSession.open(
            store, shard, threads=given.threads, context=context, slots=given.rows
        )
        alike = all(Stepper(session).rows_alike(8, count) for count in range(2, given.rows + 1))
        alone = [answers(session, prompts, [slot], given.tokens)[0] for slot in rows]
        together = answers(session, prompts, rows, given.tokens)
        counts = ", ".join(map(same, alone, together))
        print(f"{name}: rows {'alike' if alike else 'differ'}; same tokens: {counts}", flush=True)
        session.close()


if __name__ == "__main__":
    main()

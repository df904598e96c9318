"""Measures one shard of a whole model in one process.

A decode row is the rate of `DECODE_TOKENS` steps that start at `context` positions; a prefill row
is the rate of one prompt into an empty cache. Loading is not counted, nor is a warm-up before each
prompt with one as long, as llama-bench has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.runtime.schedule_limits import CHUNK_TOKENS
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest

DECODE_TOKENS = 64
SEED = 7


@dataclass(frozen=True)
class Row:
    """One measured rate, with the samples that it is the median of."""

    name: str
    precision: str
    kind: str
    context: int
    prompt: int
    tokens_per_second: float
    samples: tuple[float, ...]


class OneProcess:
    """A whole model in this process, without sockets."""

    def __init__(
        self, store: Store, model: ModelManifest, blob: Blob, threads: int, context: int
    ) -> None:
        shard, _ = fuse(store, model, blob, 0, len(model.units))
        self._session = ShardSession.open(store, shard, threads=threads, context=context)
        generator = np.random.default_rng(SEED)
        self._tokens = generator.integers(100, min(model.vocab_size, 30000), (1, context))

    def prefill(self, length: int) -> float:
        """Seconds of a prompt into an empty cache."""
        started = time.perf_counter()
        for start in range(0, length, CHUNK_TOKENS):
            tokens = self._tokens[:, start : min(start + CHUNK_TOKENS, length)]
            self._session.run(0, [start], tokens)
        return time.perf_counter() - started

    def decode(self, context: int, num_tokens: int) -> float:
        """Seconds of greedy steps after `context` positions."""
        started = time.perf_counter()
        token = self._tokens[:, :1]
        for position in range(context, context + num_tokens):
            logits = self._session.run(0, [position], token)
            token = np.array([[int(logits[0].argmax())]], np.int64)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let go of the session."""
        self._session.close()


def bench_model(
    store: Store,
    model: ModelManifest,
    blob: Blob,
    *,
    threads: int,
    contexts: Sequence[int],
    prompts: Sequence[int],
    rounds: int,
    on_row: Callable[[Row], None] = lambda _: None,
) -> Iterator[Row]:
    """Measure decode at each context and prefill of each prompt.

    Raises:
        InputError: a context or prompt is longer than the model's.
        ArtifactError: the store is corrupt.
    """
    context = max(*[c + DECODE_TOKENS for c in contexts], *prompts)
    runner = OneProcess(store, model, blob, threads, context)
    try:
        runner.prefill(16)
        runner.decode(16, 4)
        for prompt in prompts:
            runner.prefill(prompt)
            rates = [prompt / runner.prefill(prompt) for _ in range(rounds)]
            yield _row(model, "prefill", 0, prompt, rates, on_row)
        for start in contexts:
            runner.prefill(start)
            rates = [DECODE_TOKENS / runner.decode(start, DECODE_TOKENS) for _ in range(rounds)]
            yield _row(model, "decode", start, 0, rates, on_row)
    finally:
        runner.close()


def _row(
    model: ModelManifest,
    kind: str,
    context: int,
    prompt: int,
    rates: list[float],
    on_row: Callable[[Row], None],
) -> Row:
    median = statistics.median(rates)
    row = Row(model.name, model.precision, kind, context, prompt, median, tuple(rates))
    on_row(row)
    return row

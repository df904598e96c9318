"""Times one point of a profile: the same step again and again, until its median is known.

one step ──► others, pause ──► a timed step ──► is_settled ── yes, or enough ──► seconds
                    ▲                               │ no
                    └───────────────────────────────┘
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.profile import Timing

LIMIT_SECONDS = 0.3  # of the samples of a slow device
LEAST_SAMPLES = 3  # there
CONFIDENCE = 0.95
SPREAD = 0.1  # of the median


def median_interval(times: Sequence[float]) -> tuple[float, float] | None:
    """The narrowest pair of samples, equally far from either end, that hold the true median.

    They do with at least CONFIDENCE, however the times are spread: a sample is below the median as
    often as above, so that all but k - 1 of n fall on one side only as coins do.

    Args:
        times: samples in any order.

    Returns:
        The k-th smallest and the k-th largest; None where even the two ends are too unsure.
    """
    count = len(times)
    rank, outside = 0, 0
    while rank < (count + 1) // 2:
        outside += 2 * math.comb(count, rank)
        if outside > (1 - CONFIDENCE) * 2**count:
            break
        rank += 1
    ordered = sorted(times)
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def is_settled(times: Sequence[float]) -> bool:
    """Whether the median of the samples is known to SPREAD; another one would tell little."""
    interval = median_interval(times)
    if interval is None:
        return False
    low, high = interval
    return high - low <= SPREAD * float(np.median(times))


def seconds(step: Callable[[], None]) -> float:
    """How long a step takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def repeat(
    step: Callable[[], None], samples: int, pause_seconds: float, prepare: Callable[[], None]
) -> list[float]:
    """Seconds of each step, after one that warms up.

    Args:
        step: what is timed.
        samples: at most so many; fewer where they agree or the device is slow.
        pause_seconds: before each sample.
        prepare: called before each step, untimed.
    """
    prepare()
    step()
    times: list[float] = []
    ends = time.monotonic() + LIMIT_SECONDS
    while len(times) < samples and not is_settled(times):
        if len(times) >= LEAST_SAMPLES and time.monotonic() >= ends:
            break
        prepare()
        time.sleep(pause_seconds)
        times.append(seconds(step))
    return times


def shifted(times: Sequence[float], median: float) -> list[float]:
    """The same spread around another median."""
    shift = median - float(np.median(times))
    return [max(0.0, value + shift) for value in times]


def timing(times: Sequence[float]) -> Timing:
    """Median and spread of measured seconds."""
    low, median, high = (float(np.percentile(times, q)) for q in (10, 50, 90))
    return Timing(median_seconds=median, low_seconds=low, high_seconds=high, num_samples=len(times))


class Others:
    """Memory in the place of other units' weights: reading it leaves caches as they do.

    Without it a unit that is timed again and again finds its weights in a large cache, where the
    units of a whole stage drive each other out.
    """

    def __init__(self, num_bytes: int) -> None:
        """Take so many bytes, until the block is left."""
        self._memory = mmap.mmap(-1, num_bytes) if num_bytes else None

    def __enter__(self) -> Others:
        """Write them: what never was written is one page of zeros, however long."""
        if self._memory is not None:
            np.frombuffer(self._memory, np.uint8)[:] = 1
        return self

    def __exit__(self, *error: object) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()

    def read(self) -> None:
        """Read every byte."""
        if self._memory is not None:
            np.frombuffer(self._memory, np.uint8).max()


class Stepper:
    """Takes steps of a session with made-up values."""

    def __init__(self, session: ShardSession) -> None:
        self._session = session
        self._generator = np.random.default_rng(0)

    def prefill(self, length: int) -> None:
        """One prompt of `length` tokens in an empty slot."""
        self._step(0, 1, length)

    def decode(self, context: int, batch: int) -> None:
        """One new token for each of `batch` sequences that hold `context` positions."""
        self._step(context, batch, 1)

    def hold(self, context: int, batch: int) -> None:
        """Make the cache hold `context` positions; a static one may hold anything."""
        shard = self._session.shard
        if shard.kv.layout == "append" and shard.blocks and context:
            self._step(0, batch, context)

    def rows_alike(self, context: int, batch: int) -> bool:
        """Whether rows of a step of `batch` have the bits of the same rows alone."""
        self.hold(context, batch)
        values = self._values(batch, 1)
        alone = [
            self._session.run(slot, [context], values[slot : slot + 1])[0].copy()
            for slot in range(batch)
        ]
        together = self._session.run(0, [context] * batch, values)
        return np.array_equal(together, np.stack(alone), equal_nan=True)

    def _step(self, context: int, batch: int, length: int) -> None:
        self._session.run(0, [context] * batch, self._values(batch, length))

    def _values(self, batch: int, length: int) -> NDArray[Any]:
        shard = self._session.shard
        if shard.has_embedding:
            return self._generator.integers(0, shard.vocab_size, (batch, length))
        shape = (batch, length, shard.hidden_size)
        return self._generator.standard_normal(shape, np.float32)

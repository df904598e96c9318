"""From logits to a token: greedy, temperature, top-k, top-p.

Rule: the choice depends on the logits, the sampling and the position, and on nothing else. Random
numbers come from a counter-based generator (Philox, Salmon et al. 2011) keyed by the seed with the
position as counter, so a seed gives the same text in any company and when a step is repeated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeshard.errors import DeviceError
from edgeshard.runtime.wire import Sampling

_COLDEST = 1e-6  # below this, temperatures are the same in float32
_CANDIDATES = 1024  # tried before a whole vocabulary is sorted for top-p


def sample(logits: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """Choose a token.

    Args:
        logits: `[vocab]`.
        sampling: how.
        position: of the token that is chosen.

    Raises:
        DeviceError: no logit is the largest, since some are not numbers.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise DeviceError(
            "the last stage's logits are not finite; deploy again or verify the model"
        )
    if sampling.temperature == 0 or sampling.top_k == 1:
        return best
    coldest = np.float32(max(sampling.temperature, _COLDEST))
    with np.errstate(over="ignore"):  # minus infinity is what is meant
        weights = np.exp((logits - logits[best]) / coldest)
    tokens = np.arange(weights.size)
    if 0 < sampling.top_k < weights.size:
        tokens = _largest(weights, sampling.top_k)
    if sampling.top_p < 1:
        if tokens.size == weights.size:
            tokens = _nucleus_candidates(weights, sampling.top_p)
            total = _sum(weights)
        else:
            total = _sum(weights[tokens])
        before = np.cumsum(weights[tokens], dtype=np.float64) - weights[tokens]
        tokens = tokens[before < sampling.top_p * total]  # the first one is always kept
    cumulative = np.cumsum(weights[tokens], dtype=np.float64)
    chosen = np.searchsorted(cumulative, uniform(sampling.seed, position) * cumulative[-1], "right")
    return int(tokens[min(int(chosen), tokens.size - 1)])


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position."""
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, position, 0, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def _largest(weights: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest weights, largest first, ties by index."""
    chosen = np.sort(np.argpartition(weights, weights.size - count)[weights.size - count :])
    return chosen[np.argsort(-weights[chosen], kind="stable")]


def _nucleus_candidates(weights: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """The likeliest tokens, largest first, enough of them to hold `top_p` of the probability."""
    if weights.size > _CANDIDATES:
        tokens = _largest(weights, _CANDIDATES)
        if _sum(weights[tokens]) >= top_p * _sum(weights):
            return tokens
    return np.argsort(-weights, kind="stable")


def _sum(weights: NDArray[np.float32]) -> float:
    return float(weights.sum(dtype=np.float64))

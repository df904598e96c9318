"""From logits to a token: penalties, bias, then greedy, temperature, top-k, top-p.

    logits ─► repetition ─► presence, frequency ─► bias ─► temperature ─► top-k ─► top-p ─► token
       └────► log-probabilities, of what the model itself says

Rule: the choice depends on the logits, the sampling, the request's own tokens and the position, and
on nothing else. Random numbers come from a counter-based generator (Philox, Salmon et al. 2011)
keyed by the seed with the position as counter, so a seed gives the same text in any company and
when a step is repeated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeshard.errors import DeviceError
from edgeshard.runtime.wire import Likely, Sampled, Sampling
from edgeshard.runtime.wishes import Wishes

_COLDEST = 1e-6  # below this, temperatures are the same in float32
_CANDIDATES = 1024  # tried before a whole vocabulary is sorted for top-p
_LEAST_LOGPROB = -9999.0  # of what cannot be: minus infinity is no number in JSON


def draw(logits: NDArray[np.float32], request: int, wishes: Wishes, position: int) -> Sampled:
    """Choose a request's next token, and note it for the ones behind it.

    Args:
        logits: `[vocab]`.
        request: whose.
        wishes: how, and what was drawn before.
        position: of the token that is chosen.

    Raises:
        DeviceError: the logits are no numbers.
    """
    changed = penalised(logits, wishes) if wishes.changes_logits else logits
    token = sample(changed, wishes.sampling, position)
    wishes.add_drawn(token)
    if wishes.sampling.logprobs is None:
        return Sampled(request, token)
    logprob, likely = log_probabilities(logits, token, wishes.sampling.logprobs)
    return Sampled(request, token, logprob, likely)


def penalised(logits: NDArray[np.float32], wishes: Wishes) -> NDArray[np.float32]:
    """Logits after the penalties of a request and its biases.

    Repetition is that of Keskar et al. 2019 (CTRL) over prompt and answer; presence and frequency
    are OpenAI's, over the answer; a bias comes last, so that no penalty weakens it.
    """
    sampling, drawn = wishes.sampling, wishes.drawn
    result = logits.copy()
    if sampling.repetition != 1:
        tokens = np.fromiter(wishes.seen | drawn.keys(), np.intp)
        values = result[tokens]
        factor = np.float32(sampling.repetition)
        with np.errstate(over="ignore"):
            result[tokens] = np.where(values > 0, values / factor, values * factor)
    if drawn:
        tokens = np.fromiter(drawn.keys(), np.intp)
        counts = np.fromiter(drawn.values(), np.float32)
        result[tokens] -= np.float32(sampling.presence) + np.float32(sampling.frequency) * counts
    if wishes.biases:
        tokens = np.fromiter(wishes.biases.keys(), np.intp)
        result[tokens] += np.fromiter(wishes.biases.values(), np.float32)
    return result


def log_probabilities(
    logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, tuple[Likely, ...]]:
    """Natural logarithm of a token's softmax probability, and of the `count` likeliest tokens'."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    np.maximum(wide, _LEAST_LOGPROB, out=wide)
    best = _largest(logits, min(count, logits.size)) if count else np.empty(0, np.intp)
    return float(wide[token]), tuple(Likely(int(one), float(wide[one])) for one in best)


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
    if count == 1:
        return np.array([np.argmax(weights)])
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

"""The sampler: the same seed and position give the same token, whatever else happens."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshard.errors import DeviceError
from edgeshard.runtime.sampler import sample, uniform
from edgeshard.runtime.wire import Sampling

LOGITS = np.random.Generator(np.random.Philox(3)).normal(0, 2, 5000).astype(np.float32)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert sample(np.array([1, 5, 5, 2], np.float32), Sampling(), 9) == 1


def test_a_seed_and_a_position_decide() -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    tokens = [sample(LOGITS, sampling, position) for position in range(40)]
    assert [sample(LOGITS, sampling, position) for position in reversed(range(40))] == tokens[::-1]
    assert len(set(tokens)) > 5
    other = Sampling(temperature=1.0, seed=8)
    assert [sample(LOGITS, other, position) for position in range(40)] != tokens


def test_uniform_numbers_are_pinned() -> None:
    assert [round(uniform(1, position), 6) for position in range(3)] == [
        0.303568,
        0.358114,
        0.945678,
    ]


@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_top_k_stays_among_the_likeliest(top_k: int) -> None:
    allowed = set(np.argsort(-LOGITS, kind="stable")[:top_k].tolist())
    sampling = Sampling(temperature=5.0, top_k=top_k, seed=1)
    assert {sample(LOGITS, sampling, position) for position in range(200)} <= allowed


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_takes_the_smallest_set_of_that_probability(top_p: float) -> None:
    weights = np.exp(LOGITS.astype(np.float64) / 3.0)
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order]) / weights.sum()
    allowed = set(order[: int(np.searchsorted(cumulative, top_p)) + 1].tolist())
    sampling = Sampling(temperature=3.0, top_p=top_p, seed=1)
    assert {sample(LOGITS, sampling, position) for position in range(300)} <= allowed


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampling = Sampling(temperature=1.0, seed=2)
    counts = np.bincount([sample(logits, sampling, position) for position in range(4000)])
    assert np.allclose(counts / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("temperature", [1e-300, 1e-20, 1e-5])
def test_a_very_low_temperature_takes_the_likeliest(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=2)
    assert sample(LOGITS, sampling, 3) == int(np.argmax(LOGITS))


def test_impossible_tokens_are_never_chosen() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=4), Sampling(1.0, top_p=0.99)):
        assert {sample(logits, sampling, position) for position in range(50)} == {1, 3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(DeviceError, match="not finite"):
        sample(np.array([0, bad], np.float32), Sampling(), 0)

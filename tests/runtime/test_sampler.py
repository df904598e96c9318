"""The sampler: the same seed and position give the same token, whatever else happens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgeshard.errors import DeviceError
from edgeshard.runtime.sampler import draw, log_probabilities, penalised, sample, uniform
from edgeshard.runtime.wire import Sampled, Sampling
from edgeshard.runtime.wishes import Wishes

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


FEW = np.array([2.0, -1.0, 0.5, 0.0, -3.0], np.float32)


def test_repetition_is_of_prompt_and_answer_and_by_the_sign() -> None:
    wishes = Wishes(Sampling(repetition=2.0), seen={0, 1}, drawn=Counter({2: 9, 1: 1}))
    assert penalised(FEW, wishes).tolist() == [1.0, -2.0, 0.25, 0.0, -3.0]


def test_presence_and_frequency_are_of_the_answer_alone() -> None:
    sampling = Sampling(presence=0.5, frequency=0.25)
    wishes = Wishes(sampling, seen={0}, drawn=Counter({2: 2, 3: 1}))
    assert penalised(FEW, wishes).tolist() == [2.0, -1.0, -0.5, -0.75, -3.0]


def test_a_bias_comes_after_the_penalties() -> None:
    wishes = Wishes(Sampling(repetition=2.0), seen={0}, biases={0: 10.0, 4: -100.0})
    assert penalised(FEW, wishes).tolist() == [11.0, -1.0, 0.5, 0.0, -103.0]


def test_penalties_leave_the_stages_logits_alone() -> None:
    before = FEW.copy()
    penalised(FEW, Wishes(Sampling(repetition=2.0), seen={0}, biases={1: 1.0}))
    np.testing.assert_array_equal(FEW, before)


def test_a_frequency_penalty_makes_the_next_draw_another() -> None:
    wishes = Wishes(Sampling(frequency=2.0))
    tokens = [draw(FEW, 1, wishes, position).token for position in range(5)]
    assert tokens == [0, 2, 0, 3, 1]


def test_draws_that_ask_for_nothing_count_nothing() -> None:
    wishes = Wishes(Sampling())
    assert draw(FEW, 7, wishes, 0) == Sampled(7, 0)
    assert not wishes.drawn


def test_log_probabilities_are_of_the_models_own_logits() -> None:
    wishes = Wishes(Sampling(temperature=3.0, seed=4, logprobs=2), biases={4: 100.0})
    drawn = draw(FEW, 1, wishes, 0)
    expected = FEW - np.log(np.exp(FEW.astype(np.float64)).sum())
    assert drawn.token == 4
    assert drawn.logprob == pytest.approx(expected[4])
    assert [one.token for one in drawn.likely] == [0, 2]
    assert [one.logprob for one in drawn.likely] == pytest.approx([expected[0], expected[2]])


def test_no_alternatives_still_give_the_tokens_own() -> None:
    drawn = draw(FEW, 1, Wishes(Sampling(logprobs=0)), 0)
    assert drawn.logprob is not None
    assert drawn.likely == ()


@pytest.mark.parametrize("count", [1, 5, 20])
def test_probabilities_of_alternatives_are_in_order_and_no_more_than_there_are(count: int) -> None:
    _, likely = log_probabilities(FEW, 0, count)
    assert len(likely) == min(count, 5)
    values = [one.logprob for one in likely]
    assert values == sorted(values, reverse=True)
    if count >= 5:
        assert sum(np.exp(values)) == pytest.approx(1.0)


def test_what_cannot_be_has_a_number_too() -> None:
    logits = np.array([0.0, -np.inf], np.float32)
    assert log_probabilities(logits, 1, 0)[0] == -9999.0

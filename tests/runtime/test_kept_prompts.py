"""What a slot holds of a new prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.kept_prompts import MIN_TOKENS, Held, Start, num_shared, start_of

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)

PROMPT = tuple(range(40))


def start(
    prompt: tuple[int, ...],
    text: tuple[int, ...],
    num_exact: int | None = None,
    num_written: int | None = None,
    reuse_answers: bool = False,
) -> Start | None:
    exact = len(text) if num_exact is None else num_exact
    written = len(text) if num_written is None else num_written
    return start_of(prompt, 5, Held(1, "a", text, exact, written), reuse_answers)


@pytest.mark.parametrize(
    ("shared", "length"),
    [(MIN_TOKENS - 1, None), (16, 16), (17, 16), (30, 30), (31, 30), (38, 38), (39, 38)],
)
def test_what_is_shared_is_taken_up_to_an_even_position(shared: int, length: int | None) -> None:
    found = start(PROMPT, (*PROMPT[:shared], 99))
    assert (None if found is None else found.length) == length


@pytest.mark.parametrize(("size", "length"), [(40, 38), (39, 36), (18, 16), (17, None)])
def test_two_tokens_of_a_prompt_are_computed_in_any_case(size: int, length: int | None) -> None:
    found = start(PROMPT[:size], PROMPT)
    assert (None if found is None else found.length) == length


def test_what_an_answer_left_is_taken_by_who_asks_for_it_alone() -> None:
    assert start(PROMPT, PROMPT[:30], num_exact=21) == Start(5, 1, 20, 20, 21, True)
    found = start(PROMPT, PROMPT[:30], num_exact=21, reuse_answers=True)
    assert found == Start(5, 1, 30, 30, 21, True)


def test_what_is_still_to_be_written_is_not_ready() -> None:
    assert start(PROMPT, PROMPT, num_written=25) == Start(5, 1, 38, 24, 40, True)


def test_a_slot_that_holds_more_prompt_than_is_shared_would_lose_it() -> None:
    found = start((*PROMPT[:20], 99, 99), PROMPT)
    assert found is not None
    assert not found.is_all


@settings(settings.get_profile("runtime"))
@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_tokens_are_counted_from_the_start(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert num_shared(one, other) == expected

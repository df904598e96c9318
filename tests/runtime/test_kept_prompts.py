"""Which slot a new prompt takes for what it still holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime.kept_prompts import MIN_TOKENS, KeptPrompts, num_shared
from edgeshard.runtime.wire import Kept

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)

PROMPT = tuple(range(40))


def test_the_slot_with_most_of_the_prompt_is_taken() -> None:
    prompts = KeptPrompts()
    prompts.keep(0, 1, "a", PROMPT[:20])
    prompts.keep(1, 2, "a", (*PROMPT[:30], 99))
    prompts.keep(2, 3, "a", tuple(range(50, 90)))
    assert prompts.match("a", PROMPT) == (1, Kept(2, 1, 30))


def test_the_same_prompt_again_computes_its_last_two_tokens() -> None:
    prompts = KeptPrompts()
    prompts.keep(0, 1, "a", PROMPT)
    assert prompts.match("a", PROMPT) == (0, Kept(1, 0, 38))


def test_another_clients_prompt_is_not_met() -> None:
    prompts = KeptPrompts()
    prompts.keep(0, 1, "a", PROMPT)
    assert prompts.match("b", PROMPT) is None


def test_few_tokens_are_not_worth_keeping() -> None:
    prompts = KeptPrompts()
    prompts.keep(0, 1, "a", PROMPT[: MIN_TOKENS - 1])
    prompts.keep(1, 2, "a", PROMPT)
    assert 0 not in prompts
    assert prompts.match("a", (*PROMPT[: MIN_TOKENS - 1], 99, 99, 99)) is None


def test_what_is_dropped_is_not_found() -> None:
    prompts = KeptPrompts()
    prompts.keep(0, 1, "a", PROMPT)
    prompts.drop(0)
    assert prompts.match("a", PROMPT) is None


@settings(settings.get_profile("runtime"))
@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_tokens_are_counted_from_the_start(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert num_shared(one, other) == expected

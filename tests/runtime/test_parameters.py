"""Parameters: what cannot be is refused by name, with the value and what is taken instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.errors import InputError
from edgeshard.runtime.parameters import (
    Options,
    Parameters,
    Settled,
    check,
    derived_seed,
    parameters_of,
    settled,
)
from edgeshard.schemas.model import Generation

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)

NAN, INFINITE = float("nan"), float("inf")
IMPOSSIBLE = [
    ("max_tokens", 0, "0; give at least 1 and at most 2147483648"),
    ("max_tokens", 2**31 + 1, "2147483649; give"),
    ("max_tokens", 1.5, "1.5: Expected `int`"),
    ("max_tokens", None, "None: Expected `int`"),
    ("n", 0, "0; give at least 1 and at most 16"),
    ("n", 17, "17; give"),
    ("temperature", -0.1, "-0.1; give at least 0 and at most 100"),
    ("temperature", 100.5, "100.5; give"),
    ("temperature", NAN, "nan; give"),
    ("temperature", INFINITE, "inf; give"),
    ("temperature", "hot", "'hot': Expected `float`"),
    ("top_k", -1, "-1; give at least 0"),
    ("top_p", 0.0, "0.0; give more than 0 and at most 1"),
    ("top_p", 1.1, "1.1; give"),
    ("top_p", NAN, "nan; give"),
    ("seed", -1, "-1; give at least 0"),
    ("seed", 2**63, "9223372036854775808; give"),
    ("seed", 2**80, "1208925819614629174706176"),
    ("seed", "x" * 500, "…: Expected `int | null`"),
    ("logprobs", -1, "-1; give at least 0 and at most 20"),
    ("logprobs", 21, "21; give"),
    ("logprobs", True, "True: Expected `int | null`"),
    ("repetition_penalty", 0.0, "0.0; give more than 0 and at most 100"),
    ("repetition_penalty", NAN, "nan; give"),
    ("presence_penalty", 2.1, "2.1; give at least -2 and at most 2"),
    ("frequency_penalty", -2.1, "-2.1; give at least -2 and at most 2"),
    ("stop", "END", "'END': Expected `array`"),
    ("stop", [""], "0 characters; give 1 to 256"),
    ("stop", ["x" * 257], "257 characters; give 1 to 256"),
    ("stop", ["x"] * 17, "17 strings; give at most 16"),
    ("stop", [b"x"], "Expected `str`"),
    ("logit_bias", {5: 100.1}, "token 5 is 100.1; give at least -100 and at most 100"),
    ("logit_bias", {5: NAN}, "token 5 is nan; give"),
    ("logit_bias", {-1: 0.0}, "token -1; give ids from 0 on"),
    ("logit_bias", {"the": 1.0}, "Expected `int`"),
    ("logit_bias", dict.fromkeys(range(1025), 0.0), "1025 tokens; give at most 1024"),
    ("deadline_seconds", 0.0, "0.0; give more than 0 and at most 86400"),
    ("deadline_seconds", INFINITE, "inf; give"),
    ("ignore_eos", 1, "1: Expected `bool`"),
]


@pytest.mark.parametrize(("name", "value", "problem"), IMPOSSIBLE)
def test_what_cannot_be_is_named(name: str, value: object, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        parameters_of({name: value})
    assert name.split("_")[0] in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_trace_is_of_one_answer() -> None:
    with pytest.raises(InputError, match="n is 2; with trace give 1"):
        parameters_of({"n": 2, "trace": True})


def test_a_name_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(TypeError, match="no parameter 'top_q'; there are max_tokens, n, temp"):
        parameters_of({"top_q": 1})


def test_options_and_parameters_have_the_same_names() -> None:
    names = [field.name for field in msgspec.structs.fields(Parameters)]
    assert list(get_type_hints(Options)) == names
    documented = re.findall(r"^        (\w+): ", Options.__doc__ or "", re.MULTILINE)
    assert documented == names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": ("a", "b")},
        {"temperature": 1, "top_p": 1, "logit_bias": {0: 1, 9: -100}},
        {"max_tokens": 2**31, "n": 16, "seed": 2**63 - 1, "logprobs": 20},
    ],
)
def test_what_can_be_is_taken(options: Mapping[str, object]) -> None:
    parameters = parameters_of(options)
    check(parameters, vocab_size=10)  # raises nothing

    assert all(getattr(parameters, name) == value for name, value in options.items())


PLAIN = Settled(256, 0.0, 0, 1.0, 1.0)
MODEL = Generation(
    do_sample=True,
    temperature=0.6,
    top_k=20,
    top_p=0.9,
    repetition_penalty=1.1,
    max_new_tokens=64,
)


@pytest.mark.parametrize(
    ("asked", "model", "expected"),
    [
        ({}, Generation(), PLAIN),
        ({}, MODEL, Settled(64, 0.6, 20, 0.9, 1.1)),
        ({"temperature": 0}, MODEL, Settled(64, 0.0, 20, 0.9, 1.1)),
        ({"temperature": 1.5, "max_tokens": 9}, MODEL, Settled(9, 1.5, 20, 0.9, 1.1)),
        ({"top_k": 0, "top_p": 1, "repetition_penalty": 1}, MODEL, Settled(64, 0.6, 0, 1, 1)),
        ({}, Generation(do_sample=True), PLAIN._replace(temperature=1.0)),
        ({}, Generation(temperature=0.6, top_k=20, top_p=0.9), PLAIN),
        ({}, Generation(repetition_penalty=1.3), PLAIN._replace(repetition_penalty=1.3)),
        ({"temperature": 0.8}, Generation(top_p=0.5), PLAIN._replace(temperature=0.8)),
    ],
)
def test_what_a_request_does_not_say_the_model_says(
    asked: Mapping[str, object], model: Generation, expected: Settled
) -> None:
    assert settled(parameters_of(asked), model) == expected


def test_what_is_not_said_does_not_travel() -> None:
    assert b"temperature" not in msgspec.msgpack.encode(parameters_of({}))
    assert b"temperature" in msgspec.msgpack.encode(parameters_of({"temperature": 0}))


def test_token_ids_end_where_the_vocabulary_does() -> None:
    parameters = parameters_of({"logit_bias": {10: 1.0}})
    with pytest.raises(InputError, match="token 10; give ids from 0 on and below 10"):
        check(parameters, vocab_size=10)


@settings(settings.get_profile("runtime"))
@given(st.integers(0, 2**63 - 1), st.integers(1, 15))
def test_seeds_of_answers_are_seeds_and_differ(seed: int, answer: int) -> None:
    assert derived_seed(seed, 0) == seed
    derived = derived_seed(seed, answer)
    assert 0 <= derived < 2**63
    assert len({derived_seed(seed, number) for number in range(16)}) == 16


def test_derived_seeds_are_pinned() -> None:
    """Those of SplitMix64 itself, cut to 63 bits."""
    first = 10451216379200822465
    assert [derived_seed(1, number) for number in range(2)] == [1, first - 2**63]

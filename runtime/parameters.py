"""The parameters of a request: names, defaults, ranges.

Rule: what cannot be is refused by name, with the value and what is taken instead: by the client
before anything is sent, and by the coordinator again, which believes no client.

What a request does not say, the model's checkpoint may say (`settled`), and else what is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from edgeshard.errors import InputError
from edgeshard.schemas.model import Generation

MAX_ANSWERS = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
_SEEDS = 2**63
_SHOWN_CHARACTERS = 60
T = TypeVar("T")


class Options(TypedDict, total=False):
    """What `generate` takes beside the prompt.

    `max_tokens`, `temperature`, `top_k`, `top_p` and `repetition_penalty` are the model's own where
    its checkpoint says them and the request does not.

    Attributes:
        max_tokens: tokens at most; 256.
        n: answers to the prompt, at most 16; 1. Answer i is what a request of one answer with
            `derived_seed(seed, i)` gives.
        temperature: 0 takes the likeliest token; 0.
        top_k: candidates at most; 0: all.
        top_p: smallest set of candidates with this probability; 1.
        seed: the same seed gives the same text; None draws one.
        stop: strings that end the answer and are not part of it; at most 16.
        ignore_eos: go on after an end token; for measuring.
        logprobs: give the log-probability of each token and of so many alternatives, at most 20, as
            the model says them: before penalties, bias and temperature. None: neither.
        repetition_penalty: of tokens in the prompt or the answer, positive logits are divided by it
            and negative ones multiplied; 1: none.
        presence_penalty: taken from the logit of a token that is in the answer, -2 to 2; 0.
        frequency_penalty: taken for each time that it is in the answer, -2 to 2; 0.
        logit_bias: added to the logits of tokens, by id, -100 to 100; at most 1024 tokens.
        reuse_answers: start with what decode steps of earlier requests wrote too, where the prompt
            goes on behind an answer. Such keys and values are rounded otherwise than a prompt's, so
            the answer may depend on what was asked before; `Result.reused_tokens` says so.
        trace: let the result have a `trace`: what every step took where. Of one answer alone.
        deadline_seconds: after these the answer ends as it is, waiting for a slot included; None:
            never.
    """

    max_tokens: int
    n: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: Sequence[str]
    ignore_eos: bool
    logprobs: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    reuse_answers: bool
    trace: bool
    deadline_seconds: float | None


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same as a value that travels; see `Options`. Types are checked by whoever decodes it."""

    max_tokens: int | UnsetType = UNSET
    n: int = 1
    temperature: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    repetition_penalty: float | UnsetType = UNSET
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    reuse_answers: bool = False
    trace: bool = False
    deadline_seconds: float | None = None


class Settled(NamedTuple):
    """What a request comes to where it, the model or neither says something."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


class _Range(NamedTuple):
    low: float
    high: float
    has_low: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.has_low else 'more than'} {self.low} and at most {self.high}"

    def holds(self, value: float) -> bool:
        """Whether a value lies in it; no value that is not a number does."""
        return (self.low <= value if self.has_low else self.low < value) and value <= self.high


_RANGES = {
    "max_tokens": _Range(1, 2**31),
    "n": _Range(1, MAX_ANSWERS),
    "temperature": _Range(0, 100),
    "top_k": _Range(0, 2**31),
    "top_p": _Range(0, 1, has_low=False),
    "seed": _Range(0, _SEEDS - 1),
    "logprobs": _Range(0, MAX_LOGPROBS),
    "repetition_penalty": _Range(0, 100, has_low=False),
    "presence_penalty": _Range(-2, 2),
    "frequency_penalty": _Range(-2, 2),
    "deadline_seconds": _Range(0, 86400, has_low=False),
}
_BIAS = _Range(-100, 100)
_KINDS = {field.name: field.type for field in msgspec.structs.fields(Parameters)}


def parameters_of(options: Mapping[str, Any]) -> Parameters:
    """The parameters that a program's options mean.

    Raises:
        InputError: one has the wrong type or is out of its range.
        TypeError: there is none of that name.
    """
    converted = {}
    for name, value in options.items():
        if name not in _KINDS:
            raise TypeError(f"no parameter {name!r}; there are {', '.join(_KINDS)}")
        plain = dict(value) if isinstance(value, Mapping) else value
        try:
            converted[name] = msgspec.convert(plain, _KINDS[name])
        except msgspec.ValidationError as error:
            raise InputError(f"{name} is {_shown(value)}: {error}") from error
    parameters = Parameters(**converted)
    check(parameters)
    return parameters


def check(parameters: Parameters, vocab_size: int | None = None) -> None:
    """Check every range; token ids too, where the vocabulary is known.

    Raises:
        InputError: a value is out of its range.
    """
    for name, allowed in _RANGES.items():
        value = getattr(parameters, name)
        if value is not None and value is not UNSET and not allowed.holds(value):
            raise InputError(f"{name} is {_shown(value)}; give {allowed}")
    if parameters.trace and parameters.n > 1:
        raise InputError(f"n is {parameters.n}; with trace give 1")
    if len(parameters.stop) > MAX_STOPS:
        raise InputError(f"stop has {len(parameters.stop)} strings; give at most {MAX_STOPS}")
    for text in parameters.stop:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InputError(
                f"a stop string has {len(text)} characters; give 1 to {MAX_STOP_CHARACTERS}"
            )
    if len(parameters.logit_bias) > MAX_BIASES:
        raise InputError(
            f"logit_bias has {len(parameters.logit_bias)} tokens; give at most {MAX_BIASES}"
        )
    for token, bias in parameters.logit_bias.items():
        if not _BIAS.holds(bias):
            raise InputError(f"logit_bias of token {token} is {_shown(bias)}; give {_BIAS}")
        if token < 0 or (vocab_size is not None and token >= vocab_size):
            top = "" if vocab_size is None else f" and below {vocab_size}, the vocabulary's size"
            raise InputError(f"logit_bias has token {_shown(token)}; give ids from 0 on{top}")


def settled(parameters: Parameters, model: Generation) -> Settled:
    """Settle what a request leaves unsaid: as the model's checkpoint says, else greedy and plain.

    Each parameter by itself: a request that names a temperature still has the model's `top_p`.
    """
    drawn = model if model.do_sample else Generation()
    temperature = 1.0 if model.do_sample else 0.0
    return Settled(
        _first(parameters.max_tokens, model.max_new_tokens, 256),
        _first(parameters.temperature, drawn.temperature, temperature),
        _first(parameters.top_k, drawn.top_k, 0),
        _first(parameters.top_p, drawn.top_p, 1.0),
        _first(parameters.repetition_penalty, model.repetition_penalty, 1.0),
    )


def _first(asked: T | UnsetType, said: T | None, else_: T) -> T:
    if not isinstance(asked, UnsetType):
        return asked
    return else_ if said is None else said


def derived_seed(seed: int, answer: int) -> int:
    """The seed of an answer of several; the first one's is the seed itself.

    The counter-based mix is SplitMix64 (Steele, Lea and Flood 2014), cut to 63 bits.
    """
    if answer == 0:
        return seed
    mixed = (seed + answer * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) % _SEEDS


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

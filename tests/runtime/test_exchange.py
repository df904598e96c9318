"""A client's exchange: a result or an error, never silence, never a short answer."""

from __future__ import annotations

import pytest

from edgeshard.cli.generate import timings
from edgeshard.errors import BusyError, DeviceError, InputError, LinkError
from edgeshard.runtime import ask
from edgeshard.runtime.exchange import Exchange
from edgeshard.runtime.parameters import derived_seed
from edgeshard.runtime.remarks import Remarks


def exchange() -> Exchange:
    return Exchange(1, "tcp://source", 0.0)


def test_an_answer_with_its_timings() -> None:
    one = exchange()
    one.handle(ask.Started(1, 5), 0.1)
    one.handle(ask.Piece(1, 0, 70, "F"), 1.0)
    one.handle(ask.Piece(1, 1, 71, "G"), 1.5)
    one.handle(ask.Finished(1, "stop", 2, 0.2), 1.6)
    assert one.result is not None
    assert (one.result.text, one.result.token_ids) == ("FG", (70, 71))
    assert (one.result.first_token_seconds, one.result.token_seconds) == (1.0, (0.5,))
    assert (one.result.prompt_tokens, one.result.finish_reason) == (5, "stop")


def test_an_answer_says_what_may_have_changed_its_tokens() -> None:
    one, plain = exchange(), exchange()
    remarks = Remarks(is_mixed=True, links=("fp32", "int8"), depends_on_company=True)
    one.handle(ask.Finished(1, "stop", 0, 0.0, remarks=remarks), 1.6)
    plain.handle(ask.Finished(1, "stop", 0, 0.0), 1.6)

    assert one.result is not None
    assert plain.result is not None
    assert (one.result.is_mixed, one.result.is_lossy, one.result.depends_on_company) == (True,) * 3
    words = [remark.split(":")[0] for remark in timings(one.result).split("; ")[2:]]
    assert words == ["mixed", "lossy", "company"]
    assert len(timings(plain.result).split("; ")) == 2


def test_a_missing_token_is_an_error() -> None:
    one = exchange()
    with pytest.raises(LinkError, match="token 0 is missing"):
        one.handle(ask.Piece(1, 1, 71, "G"), 1.5)


def test_a_short_answer_is_an_error() -> None:
    with pytest.raises(LinkError, match="0 of 2 tokens"):
        exchange().handle(ask.Finished(1, "stop", 2, 0.2), 1.6)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("InputError", InputError), ("DeviceError", DeviceError), ("SystemExit", DeviceError)],
)
def test_a_failure_has_the_class_that_the_coordinator_says(
    kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="reason"):
        exchange().handle(ask.Failed(1, kind, "reason"), 1.0)


def test_silence_is_asked_about_and_then_an_error() -> None:
    one = exchange()
    assert not one.wants_ping(0.5)
    assert one.wants_ping(1.0)
    assert not one.wants_ping(1.5)
    one.handle(ask.Pong(), 1.6)
    assert one.wants_ping(5.0)
    with pytest.raises(LinkError, match="does not answer for 4 s after 0 tokens"):
        one.wants_ping(5.7)


def test_a_reader_that_was_away_does_not_blame_the_coordinator() -> None:
    one = exchange()
    one.was_away(100.0)
    assert one.wants_ping(101.0)


def test_events_of_other_requests_are_left_alone() -> None:
    assert exchange().handle(ask.Piece(2, 5, 1, "x"), 1.0) is None


def test_answers_to_one_prompt_are_kept_apart() -> None:
    one = Exchange(1, "tcp://source", 0.0, 2)
    one.handle(ask.Started(1, 5, 9), 0.1)
    for piece in (ask.Piece(1, 0, 70, "F", 1), ask.Piece(1, 0, 71, "G", 0)):
        one.handle(piece, 1.0)
    one.handle(ask.Finished(1, "stop", 1, 0.0, answer=1), 1.2)
    assert one.results is None
    one.handle(ask.Finished(1, "length", 1, 0.0, answer=0), 1.3)
    assert one.results is not None
    assert [(each.text, each.seed) for each in one.results] == [
        ("G", 9),
        ("F", derived_seed(9, 1)),
    ]


@pytest.mark.parametrize(
    "event", [ask.Piece(1, 0, 70, "F", 1), ask.Finished(1, "stop", 0, 0.0, answer=1)]
)
def test_an_answer_that_was_not_asked_for_is_an_error(event: ask.Event) -> None:
    with pytest.raises(LinkError, match="answer 1 comes, 1 were asked for"):
        exchange().handle(event, 1.0)


def test_a_refusal_for_want_of_room_says_when_to_ask_again() -> None:
    with pytest.raises(BusyError, match="reason") as caught:
        exchange().handle(ask.Failed(1, "BusyError", "reason", 2.5), 1.0)
    assert caught.value.retry_seconds == 2.5


def test_log_probabilities_are_in_the_result() -> None:
    one = exchange()
    likely = (ask.Alternative(70, "F", -0.5), ask.Alternative(71, "G", -1.5))
    token = one.handle(ask.Piece(1, 0, 71, "G", 0, -1.5, likely), 1.0)
    one.handle(ask.Finished(1, "stop", 1, 0.2), 1.6)
    assert token is not None
    assert (token.logprob, token.alternatives) == (-1.5, likely)
    assert one.result is not None
    assert (one.result.logprobs, one.result.alternatives) == ((-1.5,), (likely,))

"""The desk: what clients ask becomes submissions, what comes back becomes theirs alone."""

from __future__ import annotations

import msgspec
import pytest

from edgeshard.runtime import ask
from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.desk import OWED_SECONDS, Desk
from edgeshard.runtime.parameters import Parameters, derived_seed
from edgeshard.runtime.text import TextModel
from edgeshard.runtime.wire import MAJOR, Likely, Sampled, Sampling, encode
from edgeshard.schemas.model import Generation
from support.fake_clients import FakeClients
from support.runtime_double import END, VOCAB, byte_tokenizer

TEXT = TextModel(byte_tokenizer().to_str().encode(), "{{ messages[0].content }}", {})


def served(defaults: Generation | None = None) -> tuple[Desk, FakeClients]:
    clients = FakeClients()
    return Desk(clients.listener, TEXT, [END], VOCAB, defaults=defaults), clients


def generate(number: int = 1, **parameters: object) -> ask.Generate:
    return ask.Generate(number, "hi", (), msgspec.convert(parameters, Parameters))


def submitted(desk: Desk) -> list[events.Submit]:
    return [one for one in desk.take() if isinstance(one, events.Submit)]


def test_a_request_is_submitted_with_its_parameters() -> None:
    desk, clients = served()
    clients.ask(generate(seed=3, temperature=0.5, presence_penalty=1.0, logit_bias={7: 2.0}))
    (one,) = submitted(desk)
    assert (one.prompt, one.client) == (tuple(b"hi"), "k")
    assert one.sampling == Sampling(0.5, seed=3, presence=1.0)
    assert one.biases == ((7, 2.0),)
    assert clients.told[b"p"] == [ask.Started(1, 2, 3)]


def test_what_a_request_does_not_say_the_model_says() -> None:
    model = Generation(do_sample=True, temperature=0.6, top_p=0.9, max_new_tokens=7)
    desk, clients = served(model)
    clients.ask(generate(1, seed=3))
    clients.ask(generate(2, seed=3, temperature=0, max_tokens=9), b"q")
    first, second = submitted(desk)
    assert (first.sampling, first.max_tokens) == (Sampling(0.6, top_p=0.9, seed=3), 7)
    assert (second.sampling, second.max_tokens) == (Sampling(0.0, top_p=0.9, seed=3), 9)


def test_several_answers_are_requests_with_seeds_of_their_own() -> None:
    desk, clients = served()
    clients.ask(generate(seed=3, n=3))
    seeds = [one.sampling.seed for one in submitted(desk)]
    assert seeds == [derived_seed(3, number) for number in range(3)]
    assert clients.told[b"p"] == [ask.Started(1, 2, 3)]


def test_an_answer_comes_with_its_number_and_its_alternatives() -> None:
    desk, clients = served()
    clients.ask(generate(n=2, seed=0, logprobs=1))
    _, second = submitted(desk)
    assert not desk.read(Sampled(second.request, 65, -0.5, (Likely(66, -0.4),)), 0.1)
    desk.give(events.Emit(second.request, 65, 0))
    desk.give(events.Finish(second.request, "length", 1))
    alternatives = (ask.Alternative(66, "B", -0.4),)
    assert clients.told[b"p"][1:] == [
        ask.Piece(1, 0, 65, "A", 1, -0.5, alternatives),
        ask.Finished(1, "length", 1, 0.0, answer=1),
    ]
    assert not desk.is_idle


def test_a_cancel_ends_every_answer() -> None:
    desk, clients = served()
    clients.ask(generate(n=2))
    requests = [one.request for one in submitted(desk)]
    clients.ask(ask.Cancel(1))
    assert list(desk.take()) == [events.Cancel(request) for request in requests]


def test_a_cancel_of_another_connection_ends_nothing() -> None:
    desk, clients = served()
    clients.ask(generate())
    submitted(desk)
    clients.ask(ask.Cancel(1), peer=b"other")
    assert list(desk.take()) == []


def test_one_failed_answer_fails_the_request_once() -> None:
    desk, clients = served()
    clients.ask(generate(n=3))
    first, second, third = (one.request for one in submitted(desk))
    cancels = desk.give(events.Fail(second, "DeviceError", "the kernel fell over"))
    assert cancels == [events.Cancel(first), events.Cancel(third)]
    for request in (first, third):
        assert desk.give(events.Finish(request, "cancelled", 0)) == []
    assert clients.told[b"p"][1:] == [ask.Failed(1, "DeviceError", "the kernel fell over")]
    assert desk.is_idle


def test_a_refused_answer_stops_the_others_from_being_asked() -> None:
    desk, clients = served()
    clients.ask(generate(n=3))
    asked = 0
    for event in desk.take():
        assert isinstance(event, events.Submit)
        asked += 1
        desk.give(events.Fail(event.request, "InputError", "too long"))
    assert asked == 1
    assert clients.told[b"p"] == [ask.Failed(1, "InputError", "too long")]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give"),
        ({"n": 99}, "n is 99; give"),
        ({"top_p": 2.0}, "top_p is 2.0; give"),
        ({"logprobs": 99}, "logprobs is 99; give"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0; give"),
        ({"logit_bias": {VOCAB: 1.0}}, f"logit_bias has token {VOCAB}; give"),
        ({"stop": ("",)}, "a stop string has 0 characters"),
    ],
)
def test_no_client_is_believed(parameters: dict[str, object], problem: str) -> None:
    desk, clients = served()
    clients.ask(generate(7, **parameters))
    assert submitted(desk) == []
    (event,) = clients.told[b"p"]
    assert isinstance(event, ask.Failed)
    assert (event.id, event.kind) == (7, "InputError")
    assert problem in event.reason


def header(*fields: object) -> bytes:
    return bytes([69, 83, MAJOR, 0]) + msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"", "does not start with the protocol's mark"),
        (b"ES\x01\x00", "peer speaks protocol 1.0"),
        (header("delete", 1), "is not what the protocol says"),
        (header("generate", 1, "hi", [], {"top_q": 1}), "unknown field `top_q`"),
        (header("generate", 1, "hi", [], {"top_k": "x"}), "Expected `int`, got `str`"),
        (header("generate", 1, "hi", [], {"logit_bias": {"a": 1}}), "Expected `int`"),
        (header("generate", -1, "hi", [], {}), "Expected `int` >= 0"),
        (header("generate", 1, "hi"), "is not what the protocol says"),
        (header("generate", 1, "hi", [["", "a"]], {}), "is not what the protocol says"),
    ],
)
def test_what_is_no_message_is_told_so_and_changes_nothing(message: bytes, problem: str) -> None:
    desk, clients = served()
    clients.ask(message)
    assert list(desk.take()) == []
    (event,) = clients.told[b"p"]
    assert isinstance(event, ask.Failed)
    assert problem in event.reason
    assert desk.is_idle


def test_a_number_that_still_runs_is_refused() -> None:
    desk, clients = served()
    clients.ask(generate())
    clients.ask(generate())
    assert len(submitted(desk)) == 1
    assert isinstance(clients.told[b"p"][-1], ask.Failed)


def test_a_conversation_that_the_template_refuses_is_an_input_error() -> None:
    desk, clients = served()
    clients.ask(msgspec.structs.replace(generate(), prompt=None))
    assert submitted(desk) == []
    (event,) = clients.told[b"p"]
    assert isinstance(event, ask.Failed)
    assert "the chat template refuses this conversation" in event.reason


def test_a_full_chain_refuses_before_the_prompt_is_read() -> None:
    desk, clients = served()
    desk.refuse_when(lambda: ("64 requests wait", 2.5))
    clients.ask(msgspec.structs.replace(generate(), prompt=None))  # no template takes this
    assert list(desk.take()) == []
    assert clients.told[b"p"] == [ask.Failed(1, "BusyError", "64 requests wait", 2.5)]


def test_every_refusal_is_told_with_its_kind() -> None:
    desk, clients = served()
    kinds: list[str] = []
    desk.refuse_when(lambda: None, kinds.append)
    for message in (b"no message", generate(1, n=99), generate(2), generate(2)):
        clients.ask(message)
    assert len(submitted(desk)) == 1
    desk.refuse_when(lambda: ("64 requests wait", 2.5), kinds.append)
    clients.ask(generate(3))
    assert submitted(desk) == []
    assert kinds == ["LinkError", "InputError", "LinkError", "BusyError"]


def fill(desk: Desk, request: int) -> int:
    """Give a client tokens until it is cut off; how many it got."""
    for index in range(ask.MAX_UNREAD_BYTES):
        desk.read(Sampled(request, 65), 0.1)
        if desk.give(events.Emit(request, 65, index)):
            return index
    raise AssertionError("it was never cut off")


def test_a_client_that_takes_nothing_is_cut_off_by_bytes_and_told_when_it_reads() -> None:
    desk, clients = served()
    clients.ask(generate())
    (one,) = submitted(desk)
    num_tokens = fill(desk, one.request)
    data = [encode(event) for event in clients.told[b"p"]]
    piece = len(data[-1])
    assert ask.MAX_UNREAD_BYTES - piece < sum(map(len, data)) <= ask.MAX_UNREAD_BYTES
    desk.give(events.Finish(one.request, "cancelled", num_tokens))
    desk.probe(1.0)
    assert isinstance(clients.told[b"p"][-1], ask.Piece)
    clients.ask(ask.Ping(sum(map(len, data))))
    assert list(desk.take()) == []
    desk.probe(2.0)
    assert clients.told[b"p"][-1:] == [
        ask.Finished(1, "cancelled", num_tokens, desk_seconds(num_tokens))
    ]


def desk_seconds(num_tokens: int) -> float:
    """What `fill` says that decode steps took, the first token being the prompt's."""
    total = 0.0
    for _ in range(num_tokens):
        total += 0.1
    return total


def test_a_client_that_says_what_it_took_is_not_cut_off() -> None:
    desk, clients = served()
    clients.ask(generate())
    (one,) = submitted(desk)
    num_tokens = fill(desk, one.request)
    clients.ask(ask.Ping(ask.MAX_UNREAD_BYTES))
    assert list(desk.take()) == []
    assert desk.give(events.Emit(one.request, 65, num_tokens)) == []


def test_what_a_client_took_without_being_sent_gives_it_no_more_room() -> None:
    desk, clients = served()
    clients.ask(generate())
    (one,) = submitted(desk)
    clients.ask(ask.Ping(2**40))
    assert list(desk.take()) == []
    fill(desk, one.request)


def test_a_client_that_is_gone_is_cancelled_at_the_next_look() -> None:
    desk, clients = served()
    clients.ask(generate(n=2))
    clients.ask(generate(), peer=b"other")
    requests = [one.request for one in submitted(desk)]
    clients.gone.add(b"p")
    assert desk.probe(10.0) == [events.Cancel(request) for request in requests[:2]]
    assert clients.told[b"other"][-1] == ask.Pong()
    assert desk.probe(10.4) == []


def test_a_client_that_reads_again_learns_how_its_request_ended() -> None:
    desk, clients = served()
    clients.ask(generate())
    (one,) = submitted(desk)
    clients.gone.add(b"p")
    desk.read(Sampled(one.request, 65), 0.1)
    assert desk.give(events.Emit(one.request, 65, 0)) == [events.Cancel(one.request)]
    desk.give(events.Finish(one.request, "cancelled", 1))
    desk.probe(1.0)
    clients.gone.clear()
    desk.probe(2.0)
    assert clients.told[b"p"][-1] == ask.Finished(1, "cancelled", 1, 0.0)


def test_what_a_client_never_takes_is_forgotten() -> None:
    desk, clients = served()
    clients.ask(generate())
    (one,) = submitted(desk)
    clients.gone.add(b"p")
    desk.give(events.Finish(one.request, "cancelled", 0))
    desk.probe(1.0)
    desk.probe(1.0 + OWED_SECONDS)
    clients.gone.clear()
    desk.probe(100.0)
    assert clients.told[b"p"] == [ask.Started(1, 2, one.sampling.seed)]

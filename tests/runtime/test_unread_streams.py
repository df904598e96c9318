"""A client that never reads, over real sockets, beside one that does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from edgeshard.runtime import ask
from edgeshard.runtime import schedule_events as events
from edgeshard.runtime.channel import Listener, Network
from edgeshard.runtime.client import Generation
from edgeshard.runtime.connections import Connections
from edgeshard.runtime.desk import Desk
from edgeshard.runtime.parameters import Parameters
from edgeshard.runtime.text import TextModel
from edgeshard.runtime.wire import Likely, Sampled, encode
from edgeshard.schemas.cluster import Device
from support.runtime_double import END, VOCAB, byte_tokenizer

pytestmark = pytest.mark.timeout(60)
TEXT = TextModel(byte_tokenizer().to_str().encode(), None, {})
LIKELY = tuple(Likely(token, -1.0) for token in range(65, 85))
LIMIT_SECONDS = 20.0


class Served(NamedTuple):
    desk: Desk
    clients: Listener
    connections: Connections


@pytest.fixture
def served() -> Iterator[Served]:
    with Network(None) as network, Network(None) as other:
        clients = network.listen(
            "tcp://127.0.0.1:0",
            domain="client",
            admitted=(),
            max_bytes=ask.MAX_ASK_BYTES,
            queue=4096,
            unread=ask.MAX_UNREAD_EVENTS,
        )
        port = int(clients.endpoint.rpartition(":")[2])
        source = Device(name="a", address="127.0.0.1", port=port - 3, public_key="x" * 40)
        desk = Desk(clients, TEXT, [END], VOCAB)
        yield Served(desk, clients, Connections(other, source))


def ask_for(served: Served, num_likely: int) -> tuple[Generation, int]:
    """A generation, and the number of its request."""
    parameters = Parameters(max_tokens=2**30, logprobs=num_likely)
    generation = Generation(served.connections, ask.Generate(1, "hi", (), parameters))
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        for event in served.desk.take():
            assert isinstance(event, events.Submit)
            return generation, event.request
    raise AssertionError("the request never came")


def give(desk: Desk, request: int, index: int, num_likely: int) -> list[events.Cancel]:
    desk.read(Sampled(request, 65, -1.0, LIKELY[:num_likely]), 0.1)
    return desk.give(events.Emit(request, 65, index))


@pytest.mark.parametrize("num_likely", [0, 20])
def test_it_is_cut_off_at_its_cap_and_the_other_misses_nothing(
    served: Served, num_likely: int
) -> None:
    desk = served.desk
    stuck, stuck_request = ask_for(served, num_likely)
    reader, reader_request = ask_for(served, num_likely)
    is_cut, index = False, 0
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_cut or index % 100:
        assert time.monotonic() < deadline
        if not is_cut:
            cancels = give(desk, stuck_request, index, num_likely)
            is_cut = bool(cancels)
            assert cancels in ([], [events.Cancel(stuck_request)])
        assert give(desk, reader_request, index, num_likely) == []
        assert next(reader).index == index
        assert list(desk.take()) == []
        index += 1
    piece = encode(ask.Piece(1, index, 65, "A", 0, -1.0, tuple(_alternatives(num_likely))))
    assert index * len(piece) > ask.MAX_UNREAD_BYTES * 0.9
    assert (index - 200) * len(piece) < ask.MAX_UNREAD_BYTES
    reader.close()
    stuck.close()


def _alternatives(num_likely: int) -> Iterator[ask.Alternative]:
    for one in LIKELY[:num_likely]:
        yield ask.Alternative(one.token, chr(one.token), one.logprob)


def test_one_that_reads_again_gets_what_was_sent_and_learns_of_its_end(served: Served) -> None:
    desk = served.desk
    stuck, request = ask_for(served, 20)
    num_given = 0
    while not give(desk, request, num_given, 20):
        num_given += 1
    desk.give(events.Finish(request, "cancelled", num_given))
    reading = threading.Thread(target=stuck.finish)
    reading.start()
    deadline = time.monotonic() + LIMIT_SECONDS
    while reading.is_alive() and time.monotonic() < deadline:
        list(desk.take())
        desk.probe(time.monotonic())
        reading.join(0.01)
    assert stuck.result.finish_reason == "cancelled"
    assert len(stuck.result.token_ids) == num_given

"""A client's connections wait for its next request, over real sockets and a desk that answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from edgeshard.errors import BusyError, LinkError
from edgeshard.runtime import ask, connections
from edgeshard.runtime.channel import KeyPair, Listener, Network
from edgeshard.runtime.client import AsyncClient, Client
from edgeshard.runtime.wire import encode, split
from edgeshard.schemas.cluster import Cluster, Device

pytestmark = pytest.mark.timeout(60)
KEYS, SOURCE = KeyPair.generate(), KeyPair.generate()
Answers = Callable[[ask.Generate], list[ask.Event]]


def answer(request: ask.Generate) -> list[ask.Event]:
    """One token, and the end; a prompt of "busy" is refused."""
    if request.prompt == "busy":
        return [ask.Failed(request.id, "BusyError", "full", 1.0)]
    piece = ask.Piece(request.id, 0, 65, "A")
    return [ask.Started(request.id, 1, 0), piece, ask.Finished(request.id, "stop", 1, 0.0)]


class Desk:
    """Answers, and remembers who asked; `peers` has a name for each connection."""

    def __init__(self, listener: Listener, answers: Answers) -> None:
        self.peers: list[bytes] = []
        self.numbers: list[int] = []
        self._listener, self._answers = listener, answers
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            arrival = self._listener.receive(0.05)
            if arrival is None:
                continue
            message = ask.ask_codec.decode(split(arrival.frames, 0)[0])
            if isinstance(message, ask.Generate):
                self.peers.append(arrival.peer)
                self.numbers.append(message.id)
                for event in self._answers(message):
                    self._listener.send(arrival.peer, [encode(event)])


@contextmanager
def serving(answers: Answers = answer, port: int = 0) -> Iterator[tuple[Desk, Cluster]]:
    with Network(SOURCE) as network:
        listener = network.listen(
            f"tcp://127.0.0.1:{port}",
            domain="client",
            admitted=[KEYS.public],
            max_bytes=ask.MAX_ASK_BYTES,
            queue=4096,
        )
        bound = int(listener.endpoint.rpartition(":")[2])
        device = Device(name="here", address="127.0.0.1", port=bound - 3, public_key=SOURCE.public)
        desk = Desk(listener, answers)
        try:
            yield desk, Cluster(source="here", operators=(KEYS.public,), devices=(device,))
        finally:
            desk.close()


def text(client: Client, prompt: str = "a") -> str:
    return client.generate(prompt, raw=True).finish().text


def test_the_next_request_goes_over_the_same_connection_under_another_number() -> None:
    with serving() as (desk, cluster), Client.connect(cluster, KEYS) as client:
        assert [text(client) for _ in range(5)] == ["A"] * 5
        assert len(set(desk.peers)) == 1
        assert len(set(desk.numbers)) == 5


def test_a_request_that_was_refused_leaves_its_connection_to_the_next() -> None:
    with serving() as (desk, cluster), Client.connect(cluster, KEYS) as client:
        for _ in range(3):
            with pytest.raises(BusyError, match="full"):
                text(client, "busy")
        assert text(client) == "A"
        assert len(set(desk.peers)) == 1


def test_requests_at_once_have_a_connection_each() -> None:
    with serving() as (desk, cluster), Client.connect(cluster, KEYS) as client:
        running = [client.generate("a", raw=True) for _ in range(3)]
        assert [one.finish().text for one in running] == ["A"] * 3
        assert len(set(desk.peers)) == 3
        assert [text(client) for _ in range(3)] == ["A"] * 3
        assert len(set(desk.peers)) == 3


def test_no_more_than_some_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE", 2)
    with serving() as (desk, cluster), Client.connect(cluster, KEYS) as client:
        for _ in range(2):
            running = [client.generate("a", raw=True) for _ in range(4)]
            assert [one.finish().text for one in running] == ["A"] * 4
        assert len(set(desk.peers)) == 4 + 2


def test_what_comes_late_is_not_taken_for_an_answer_to_the_next_request() -> None:
    def late(request: ask.Generate) -> list[ask.Event]:
        return [ask.Piece(max(request.id - 1, 1), 7, 66, "B"), *answer(request)][request.id == 1 :]

    with serving(late) as (desk, cluster), Client.connect(cluster, KEYS) as client:
        assert [text(client) for _ in range(3)] == ["A"] * 3
        assert len(set(desk.peers)) == 1


def test_a_connection_whose_request_may_not_be_over_serves_nobody_else() -> None:
    def cut(request: ask.Generate) -> list[ask.Event]:
        return [*answer(request)[:1], ask.Piece(request.id, 3, 65, "A")]

    with serving(cut) as (desk, cluster), Client.connect(cluster, KEYS) as client:
        for _ in range(2):
            with pytest.raises(LinkError, match="token 0 is missing"):
                text(client)
        assert len(set(desk.peers)) == 2


def test_a_coordinator_that_was_started_anew_is_asked_as_the_first_one() -> None:
    with serving() as (_, cluster):
        client = Client.connect(cluster, KEYS)
        assert text(client) == "A"
    with serving(port=cluster.devices[0].port + 3) as (desk, _), client:
        assert [text(client) for _ in range(2)] == ["A"] * 2
        assert len(set(desk.peers)) == 1


def test_an_event_loop_takes_no_connection_of_another_one() -> None:
    async def several(client: AsyncClient) -> list[str]:
        return [(await client.generate("a", raw=True).finish()).text for _ in range(3)]

    with serving() as (desk, cluster):
        client = AsyncClient.connect(cluster, KEYS)
        assert asyncio.run(several(client)) == ["A"] * 3
        assert len(set(desk.peers)) == 1
        assert asyncio.run(several(client)) == ["A"] * 3
        assert len(set(desk.peers)) == 2
        asyncio.run(client.close())


def test_an_event_loop_leaves_those_of_another_one_that_runs_alone() -> None:
    async def ask_once(client: AsyncClient) -> None:
        await client.generate("a", raw=True).finish()

    with serving() as (desk, cluster):
        client = AsyncClient.connect(cluster, KEYS)
        with asyncio.Runner() as one, asyncio.Runner() as other:
            for runner in (one, other, one, other):
                runner.run(ask_once(client))
            assert len(set(desk.peers)) == 2
            other.run(client.close())


def test_threads_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE", 4)
    with serving() as (desk, cluster), Client.connect(cluster, KEYS) as client:
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda: said.extend(text(client) for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == ["A"] * 160
        assert len(desk.numbers) == 160

"""Sockets fail closed: only admitted keys deliver, sizes are bounded, nothing blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import zmq

from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime.channel import (
    BULK_MS,
    SILENCE_MS,
    Dialer,
    KeyPair,
    Listener,
    Network,
    Poller,
)
from edgeshard.runtime.waker import Waker
from support.cut_proxy import CutProxy

SERVER, CLIENT, STRANGER = KeyPair.generate(), KeyPair.generate(), KeyPair.generate()
LIMIT = 2.0
REFUSED = 0.6


@pytest.fixture
def server() -> Iterator[Network]:
    with Network(SERVER) as network:
        yield network


@pytest.fixture
def client() -> Iterator[Network]:
    with Network(CLIENT) as network:
        yield network


def listen(network: Network, max_bytes: int = 4096) -> Listener:
    return network.listen(
        "tcp://127.0.0.1:0", domain="data", admitted=[CLIENT.public], max_bytes=max_bytes, queue=8
    )


def dial(network: Network, listener: Listener, key: str = SERVER.public) -> Dialer:
    return network.dial(listener.endpoint, key, max_bytes=4096, queue=8)


def received(listener: Listener) -> list[bytes]:
    """The frames of the next message; fails where none comes."""
    poller = Poller(listener)
    for _ in range(20):
        arrival = listener.receive()
        if arrival is not None:
            return [bytes(frame) for frame in arrival.frames]
        poller.wait(LIMIT / 20)
    raise AssertionError("nothing arrived")


def test_an_admitted_key_delivers_and_is_known(server: Network, client: Network) -> None:
    listener = listen(server)
    dialer = dial(client, listener)
    assert dialer.wait_connected(LIMIT)
    assert dialer.send([b"header", b"payload"])
    assert Poller(listener).wait(LIMIT) == {listener}
    arrival = listener.receive()
    assert arrival is not None
    assert arrival.key == CLIENT.public
    assert listener.send(arrival.peer, [b"answer"])
    assert dialer.wait(LIMIT)
    answer = dialer.receive()
    assert answer is not None
    assert bytes(answer[0]) == b"answer"


def test_strangers_deliver_nothing(server: Network, client: Network) -> None:
    listener = listen(server)
    with Network(STRANGER) as stranger, Network(CLIENT) as wrong, zmq.Context() as plain:
        unknown = dial(stranger, listener)
        misled = dial(wrong, listener, STRANGER.public)
        null = plain.socket(zmq.DEALER)
        null.linger = 0
        null.connect(listener.endpoint)
        null.send(b"from a NULL client")
        assert not unknown.wait_connected(REFUSED)
        assert not misled.wait_connected(REFUSED)
        assert not unknown.send([b"from an unknown key"])
        good = dial(client, listener)
        assert good.wait_connected(LIMIT)
        assert good.send([b"good"])
        assert received(listener) == [b"good"]
        assert listener.receive() is None
        null.close()


def test_without_its_authenticator_nobody_gets_in(server: Network, client: Network) -> None:
    listener = listen(server)
    assert server._authenticator is not None
    server._authenticator.stop()
    assert not dial(client, listener).wait_connected(REFUSED)
    server._authenticator = None


def test_a_key_that_is_no_longer_admitted_delivers_nothing(
    server: Network, client: Network
) -> None:
    listener = listen(server)
    dialer = dial(client, listener)
    assert dialer.wait_connected(LIMIT)
    listener.admit([STRANGER.public])
    assert dialer.send([b"late"])
    assert Poller(listener).wait(LIMIT) == {listener}
    assert listener.receive() is None
    assert listener.refused == 1


def test_each_listener_has_its_own_list(server: Network, client: Network) -> None:
    listener = listen(server)
    other = server.listen(
        "tcp://127.0.0.1:0", domain="control", admitted=[STRANGER.public], max_bytes=64, queue=8
    )
    assert dial(client, listener).wait_connected(LIMIT)
    assert not dial(client, other).wait_connected(REFUSED)


def test_a_part_beyond_the_limit_ends_the_connection_not_the_service(
    server: Network, client: Network
) -> None:
    listener = listen(server, max_bytes=1000)
    large, small = dial(client, listener), dial(client, listener)
    assert large.wait_connected(LIMIT)
    assert small.wait_connected(LIMIT)
    large.send([bytes(5000)])
    small.send([bytes(1000)])
    assert received(listener) == [bytes(1000)]


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:0", "tcp://[::]:0"])
def test_without_keys_only_loopback_is_bound(endpoint: str) -> None:
    with Network(None) as network:
        with pytest.raises(InputError, match="esc keys"):
            network.listen(endpoint, domain="x", admitted=[], max_bytes=64, queue=8)
        network.listen("tcp://127.0.0.1:0", domain="x", admitted=[], max_bytes=64, queue=8)


def test_a_port_in_use_is_named(server: Network) -> None:
    listener = listen(server)
    with pytest.raises(DeviceError, match="in use"):
        server.listen(listener.endpoint, domain="x", admitted=[], max_bytes=64, queue=8)


def test_an_address_that_is_not_ours_is_refused(server: Network) -> None:
    with pytest.raises(InputError, match="cannot listen"):
        server.listen("tcp://192.0.2.1:17000", domain="x", admitted=[], max_bytes=64, queue=8)


def test_nothing_is_queued_for_nobody(client: Network) -> None:
    nobody = client.dial("tcp://127.0.0.1:9", SERVER.public, max_bytes=64, queue=8)
    assert not nobody.send([b"x"])
    assert nobody.receive() is None


def test_sending_to_a_peer_that_is_gone_says_so(server: Network) -> None:
    assert not listen(server).send(b"nobody", [b"x"])


def test_a_message_slower_than_a_sign_of_life_arrives(server: Network, client: Network) -> None:
    seconds, message = 1.5 * SILENCE_MS / 1e3, bytes(600_000)
    listener = server.listen(
        "tcp://127.0.0.1:0",
        domain="data",
        admitted=[CLIENT.public],
        max_bytes=len(message),
        queue=8,
        silence_ms=BULK_MS,
    )
    cable = CutProxy(listener.endpoint, len(message) / seconds)
    try:
        dialer = client.dial(
            cable.endpoint, SERVER.public, max_bytes=0, queue=8, silence_ms=BULK_MS
        )
        assert dialer.wait_connected(LIMIT)
        assert dialer.send([message])
        arrival = listener.receive(seconds + LIMIT)
        assert arrival is not None
        assert len(arrival.frames[0]) == len(message)
    finally:
        cable.close()


def test_a_waker_ends_a_wait_once() -> None:
    waker = Waker()
    poller = Poller(waker)
    waker.wake()
    assert poller.wait(LIMIT) == {waker}
    waker.clear()
    assert poller.wait(0.0) == set()
    waker.close()
    waker.wake()


def test_an_event_loop_can_wait(server: Network, client: Network) -> None:
    listener = listen(server)

    async def talk() -> list[bytes]:
        dialer = client.dial(
            listener.endpoint, SERVER.public, max_bytes=64, queue=8, asynchronous=True
        )
        assert await dialer.wait_connected_async(LIMIT)
        assert dialer.send([b"question"])
        Poller(listener).wait(LIMIT)
        arrival = listener.receive()
        assert arrival is not None
        listener.send(arrival.peer, [b"answer"])
        assert await dialer.wait_async(LIMIT)
        frames = dialer.receive()
        dialer.close()
        return [bytes(frame) for frame in frames or []]

    assert asyncio.run(talk()) == [b"answer"]

"""A worker process at its sockets: whom it takes what from, and how stage 0 runs ahead."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeshard.runtime.channel import Dialer, Listener, Network
from edgeshard.runtime.child import Child, Line
from edgeshard.runtime.figures import StageFigures
from edgeshard.runtime.inlet import Inlet
from edgeshard.runtime.keys import make_keys
from edgeshard.runtime.local import free_ports
from edgeshard.runtime.stage_config import StageConfig
from edgeshard.runtime.wire import (
    Ack,
    Close,
    Fault,
    Knock,
    Message,
    Open,
    Row,
    Sampled,
    Sampling,
    Step,
    Token,
    ack_codec,
    encode_numbered,
    split,
    stage_codec,
)
from edgeshard.schemas.common import Blob
from support.cut_proxy import CutProxy
from support.runtime_double import HIDDEN, SLOTS, shard_of

pytestmark = pytest.mark.timeout(60)
EPOCH = 3
LIMIT_SECONDS = 10.0
CHUNK = 512


@dataclass
class Stage:
    """Stage 0 of a chain, and the ends of its neighbours."""

    source: Dialer
    last: Dialer
    following: Listener
    cable: CutProxy
    told: queue.SimpleQueue[Line]

    def next_message(self) -> tuple[Message, int]:
        """The next message that it sends on, and the number that its payload holds, if any."""
        arrival = self.following.receive(LIMIT_SECONDS)
        assert arrival is not None
        header, payload = split(arrival.frames)
        number = -1 if payload is None else int(np.frombuffer(payload, np.float32)[-4])
        return stage_codec.decode_numbered(header)[1], number

    def figures(self) -> StageFigures:
        """The next figures that it tells."""
        while True:
            figures = self.told.get(timeout=LIMIT_SECONDS).figures
            if isinstance(figures, StageFigures):
                return figures

    def blocked(self) -> str:
        """Why it cannot go on."""
        while True:
            reason = self.told.get(timeout=LIMIT_SECONDS).blocked
            if reason is not None:
                return reason


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    keys = {n: make_keys(tmp_path / "keys", n) for n in ("worker", "source", "last", "following")}
    networks = {name: Network(pair) for name, pair in keys.items() if name != "worker"}
    following = networks["following"].listen(
        "tcp://127.0.0.1:0",
        domain="data",
        admitted=[keys["worker"].public],
        max_bytes=CHUNK * HIDDEN * 4,
        queue=1024,
    )
    cable = CutProxy(following.endpoint)
    config = StageConfig(
        store=str(tmp_path),
        shard=shard_of(0, 3, Blob(digest="sha256:" + "0" * 64, size_bytes=0, suffix=".onnx")),
        key=str(tmp_path / "keys" / "worker.secret"),
        epoch=EPOCH,
        index=0,
        provider="double",
        threads=1,
        context=2 * CHUNK,
        slots=SLOTS,
        chunk_tokens=CHUNK,
        listen=f"tcp://127.0.0.1:{free_ports(1)}",
        previous_key=keys["source"].public,
        next_endpoint=cable.endpoint,
        next_key=keys["following"].public,
        last_key=keys["last"].public,
        tells_figures=True,
    )
    told: queue.SimpleQueue[Line] = queue.SimpleQueue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        words = msgspec.json.encode(config)
        worker = Child("support.runtime_worker", words, told.put, lambda code: None)
    try:
        while told.get(timeout=LIMIT_SECONDS).ready is None:
            pass

        def dial(name: str) -> Dialer:
            server = keys["worker"].public
            dialer = networks[name].dial(config.listen, server, max_bytes=4096, queue=1024)
            assert dialer.wait_connected(LIMIT_SECONDS)
            return dialer

        yield Stage(dial("source"), dial("last"), following, cable, told)
    finally:
        worker.end_input(LIMIT_SECONDS)
        cable.close()
        for network in networks.values():
            network.close()


def test_stage_0_goes_on_with_the_tokens_of_the_last_stage(stage: Stage) -> None:
    opened = Open(EPOCH, 5, 0, Sampling())
    first = Step(EPOCH, 8, 0, (Row(5, 0),), 2, True, ahead=2)
    stage.source.send([encode_numbered(0, opened)])
    stage.source.send([encode_numbered(1, first), np.array([3, 4], np.int64).tobytes()])
    assert stage.next_message()[0] == opened
    step, number = stage.next_message()
    assert isinstance(step, Step)
    assert (step.number, step.ahead) == (8, 2)

    stage.last.send([encode_numbered(0, Token(EPOCH, 8, (Sampled(5, number),), 0.0, None, 2))])
    added, _ = stage.next_message()

    assert isinstance(added, Step)
    assert (added.number, added.rows, added.num_tokens, added.ahead) == (9, (Row(5, 2),), 1, 1)


def test_the_last_stage_may_send_it_tokens_and_nothing_else(stage: Stage) -> None:
    stage.last.send([encode_numbered(0, Open(EPOCH, 6, 1, Sampling()))])
    stage.last.send(
        [encode_numbered(0, Token(EPOCH, 1, (Sampled(6, 7),), 0.0, None, 2))]
    )  # of no step
    opened = Open(EPOCH, 5, 0, Sampling())
    stage.source.send([encode_numbered(0, opened)])

    assert stage.next_message()[0] == opened
    for _ in range(5):  # figures come each second, and the first may be older
        counts = stage.figures().refused
        if {"refused", "stale request"} <= counts.keys():
            break
    assert (counts["refused"], counts["stale request"]) == (1, 1)


def test_a_token_that_is_none_of_the_vocabulary_reaches_no_kernel(stage: Stage) -> None:
    stage.source.send([encode_numbered(0, Open(EPOCH, 5, 0, Sampling()))])
    first = Step(EPOCH, 8, 0, (Row(5, 0),), 2, True, ahead=2)
    stage.source.send([encode_numbered(1, first), np.array([3, 4], np.int64).tobytes()])
    assert [type(stage.next_message()[0]) for _ in range(2)] == [Open, Step]

    stage.last.send([encode_numbered(0, Token(EPOCH, 8, (Sampled(5, 10**6),), 0.0, None, 2))])

    fault, _ = stage.next_message()
    assert isinstance(fault, Fault)
    assert "a token id is not below" in fault.reason


def test_a_message_that_is_lost_breaks_the_hop_and_says_which(stage: Stage) -> None:
    opened = Open(EPOCH, 5, 0, Sampling())
    stage.source.send([encode_numbered(0, opened)])
    stage.source.send([encode_numbered(0, Open(EPOCH, 6, 1, Sampling()))])  # again: not applied
    stage.source.send([encode_numbered(3, Close(EPOCH, 5, 0))])
    stage.source.send([encode_numbered(4, Close(EPOCH, 5, 0))])

    assert stage.next_message()[0] == opened
    assert "messages 1 to 2 were lost on their way" in stage.blocked()
    assert stage.following.receive(0.2) is None


def test_a_knock_shows_that_the_tail_was_lost(stage: Stage) -> None:
    stage.source.send([encode_numbered(1, Knock(EPOCH))])

    assert "messages 0 to 0 were lost" in stage.blocked()


def test_messages_are_acknowledged_and_another_epoch_hears_of_ours(stage: Stage) -> None:
    opened = encode_numbered(0, Open(EPOCH, 5, 0, Sampling()))
    stage.source.send([opened])
    assert ack_of(stage.source) == Ack(EPOCH, 1, len(opened))

    stage.source.send([encode_numbered(7, Close(EPOCH - 1, 5, 0))])

    assert ack_of(stage.source) == Ack(EPOCH, 0, 0)
    assert isinstance(stage.next_message()[0], Open)
    assert stage.following.receive(0.2) is None


def test_a_slow_next_stage_stops_it_within_its_credit_and_loses_nothing(stage: Stage) -> None:
    num_steps, tokens = 60, np.zeros(CHUNK, np.int64).tobytes()
    for number in range(num_steps):  # to a stage that sends on CHUNK * HIDDEN * 4 bytes for each
        opened = encode_numbered(3 * number, Open(EPOCH, number, 0, Sampling()))
        step = Step(EPOCH, number, 0, (Row(number, 0),), CHUNK, False)
        assert stage.source.send([opened])
        assert stage.source.send([encode_numbered(3 * number + 1, step), tokens])
        closed = encode_numbered(3 * number + 2, Close(EPOCH, number, 0))
        assert stage.source.send([closed])
        while stage.source.receive() is not None:
            pass

    payload = CHUNK * HIDDEN * 4
    before, now = stage.figures(), stage.figures()
    while now.positions > before.positions or not now.positions:
        before, now = now, stage.figures()
    assert now.credit_bytes - 2 * payload < now.in_flight_bytes <= now.credit_bytes
    assert now.positions < num_steps * CHUNK  # it takes nothing more, so its sender stops as well
    assert now.blocked_seconds > before.blocked_seconds
    inlet = Inlet(stage.following, EPOCH, payload)
    steps: list[int] = []
    while len(steps) < num_steps:
        arrival = stage.following.receive(LIMIT_SECONDS)
        assert arrival is not None
        number, message = stage_codec.decode_numbered(arrival.frames[0])
        assert inlet.take(arrival, message.epoch, number)
        inlet.acknowledge(time.monotonic())
        if isinstance(message, Step):
            steps.append(message.number)
    assert steps == list(range(num_steps))


def test_a_cable_that_is_cut_is_told_though_nothing_is_to_be_sent(stage: Stage) -> None:
    stage.source.send([encode_numbered(0, Open(EPOCH, 5, 0, Sampling()))])
    assert isinstance(stage.next_message()[0], Open)
    stage.figures()
    while stage.cable.num_connections < 2:  # that for signs of life comes when it can
        stage.figures()
    for _ in range(3):  # a second each; it is looked at four times in each
        stage.figures()

    stage.cable.cut()

    assert stage.blocked() == f"the connection to {stage.cable.endpoint} is cut"


def ack_of(dialer: Dialer) -> Ack:
    assert dialer.wait(LIMIT_SECONDS)
    frames = dialer.receive()
    assert frames is not None
    return ack_codec.decode(frames[0])

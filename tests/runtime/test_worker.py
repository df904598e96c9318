"""A worker process at its sockets: whom it takes what from, and how stage 0 runs ahead."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeshard.runtime.channel import Dialer, Listener, Network
from edgeshard.runtime.child import Child, Line
from edgeshard.runtime.figures import StageFigures
from edgeshard.runtime.keys import make_keys
from edgeshard.runtime.local import free_ports
from edgeshard.runtime.wire import (
    Fault,
    Message,
    Open,
    Row,
    Sampled,
    Sampling,
    Step,
    Token,
    encode,
    split,
    stage_codec,
)
from edgeshard.runtime.worker import StageConfig
from edgeshard.schemas.common import Blob
from support.runtime_double import CONTEXT, SLOTS, shard_of

pytestmark = pytest.mark.timeout(60)
EPOCH = 3
LIMIT_SECONDS = 10.0


@dataclass
class Stage:
    """Stage 0 of a chain, and the ends of its neighbours."""

    source: Dialer
    last: Dialer
    following: Listener
    told: queue.SimpleQueue[Line]

    def next_message(self) -> tuple[Message, int]:
        """The next message that it sends on, and the number that its payload holds, if any."""
        arrival = self.following.receive(LIMIT_SECONDS)
        assert arrival is not None
        header, payload = split(arrival.frames)
        number = -1 if payload is None else int(np.frombuffer(payload, np.float32)[-4])
        return stage_codec.decode(header), number

    def refused(self) -> dict[str, int]:
        """What it has counted as not applied, from the next figures that it tells."""
        while True:
            figures = self.told.get(timeout=LIMIT_SECONDS).figures
            if isinstance(figures, StageFigures):
                return figures.refused


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    keys = {n: make_keys(tmp_path / "keys", n) for n in ("worker", "source", "last", "following")}
    networks = {name: Network(pair) for name, pair in keys.items() if name != "worker"}
    following = networks["following"].listen(
        "tcp://127.0.0.1:0",
        domain="data",
        admitted=[keys["worker"].public],
        max_bytes=4096,
        queue=64,
    )
    config = StageConfig(
        store=str(tmp_path),
        shard=shard_of(0, 3, Blob(digest="sha256:" + "0" * 64, size_bytes=0, suffix=".onnx")),
        key=str(tmp_path / "keys" / "worker.secret"),
        epoch=EPOCH,
        index=0,
        provider="double",
        threads=1,
        context=CONTEXT,
        slots=SLOTS,
        chunk_tokens=16,
        listen=f"tcp://127.0.0.1:{free_ports(1)}",
        previous_key=keys["source"].public,
        next_endpoint=following.endpoint,
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
            dialer = networks[name].dial(config.listen, server, max_bytes=4096, queue=64)
            assert dialer.wait_connected(LIMIT_SECONDS)
            return dialer

        yield Stage(dial("source"), dial("last"), following, told)
    finally:
        worker.end_input(LIMIT_SECONDS)
        for network in networks.values():
            network.close()


def test_stage_0_goes_on_with_the_tokens_of_the_last_stage(stage: Stage) -> None:
    opened = Open(EPOCH, 5, 0, Sampling())
    first = Step(EPOCH, 8, 0, (Row(5, 0),), 2, True, ahead=2)
    stage.source.send([encode(opened)])
    stage.source.send([encode(first), np.array([3, 4], np.int64).tobytes()])
    assert stage.next_message()[0] == opened
    step, number = stage.next_message()
    assert isinstance(step, Step)
    assert (step.number, step.ahead) == (8, 2)

    stage.last.send([encode(Token(EPOCH, 8, (Sampled(5, number),), 0.0, None, 2))])
    added, _ = stage.next_message()

    assert isinstance(added, Step)
    assert (added.number, added.rows, added.num_tokens, added.ahead) == (9, (Row(5, 2),), 1, 1)


def test_the_last_stage_may_send_it_tokens_and_nothing_else(stage: Stage) -> None:
    stage.last.send([encode(Open(EPOCH, 6, 1, Sampling()))])
    stage.last.send([encode(Token(EPOCH, 1, (Sampled(6, 7),), 0.0, None, 2))])  # of no step
    opened = Open(EPOCH, 5, 0, Sampling())
    stage.source.send([encode(opened)])

    assert stage.next_message()[0] == opened
    for _ in range(5):  # figures come each second, and the first may be older
        counts = stage.refused()
        if {"refused", "stale request"} <= counts.keys():
            break
    assert (counts["refused"], counts["stale request"]) == (1, 1)


def test_a_token_that_is_none_of_the_vocabulary_reaches_no_kernel(stage: Stage) -> None:
    stage.source.send([encode(Open(EPOCH, 5, 0, Sampling()))])
    first = Step(EPOCH, 8, 0, (Row(5, 0),), 2, True, ahead=2)
    stage.source.send([encode(first), np.array([3, 4], np.int64).tobytes()])
    assert [type(stage.next_message()[0]) for _ in range(2)] == [Open, Step]

    stage.last.send([encode(Token(EPOCH, 8, (Sampled(5, 10**6),), 0.0, None, 2))])

    fault, _ = stage.next_message()
    assert isinstance(fault, Fault)
    assert "a token id is not below" in fault.reason

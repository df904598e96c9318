"""An operator's uploads over a slow cable, to an agent that only takes blobs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.errors import LinkError
from edgeshard.runtime import agent_client as module
from edgeshard.runtime import control
from edgeshard.runtime.agent_client import LEAST_CHUNK_BYTES, AgentClient, chunk_bytes
from edgeshard.runtime.channel import Listener, Network
from edgeshard.runtime.uploads import Uploads
from edgeshard.runtime.wire import encode, split
from edgeshard.schemas.cluster import Device
from edgeshard.schemas.common import Blob
from support.cut_proxy import CutProxy

pytestmark = pytest.mark.timeout(60)
BYTES_PER_SECOND = 400_000
SILENCE_SECONDS = 0.8  # a fifth of what the blob takes


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[Store, Device]]:
    """The agent's store, and the agent behind a slow cable."""
    store, is_over = Store(tmp_path / "there"), threading.Event()
    with Network(None) as network:
        listener = network.listen(
            "tcp://127.0.0.1:0",
            domain="control",
            admitted=(),
            max_bytes=control.MAX_CONTROL_BYTES,
            queue=control.QUEUE,
        )
        cable = CutProxy(listener.endpoint, BYTES_PER_SECOND)
        thread = threading.Thread(target=_serve, args=(listener, Uploads(store), is_over))
        thread.start()
        try:
            port = int(cable.endpoint.rpartition(":")[2])
            yield store, Device(name="a", address="127.0.0.1", port=port, public_key="x" * 40)
        finally:
            is_over.set()
            thread.join()
            cable.close()


def _serve(listener: Listener, uploads: Uploads, is_over: threading.Event) -> None:
    while not is_over.is_set():
        arrival = listener.receive(0.05)
        if arrival is None:
            continue
        header, payload = split(arrival.frames)
        request = control.request_codec.decode(header)
        reply: control.Reply = control.Ok(id=request.id)
        if isinstance(request, control.Missing):
            reply = control.MissingReply(id=request.id, blobs=request.blobs)
        if isinstance(request, control.PutChunk):
            uploads.put("me", request.blob, request.offset, bytes(payload or b""))
        listener.send(arrival.peer, [encode(reply)])


def _blob(store: Store) -> Blob:
    with store.writer(".onnx") as writer:
        writer.write(bytes(1_600_000))
        return writer.finish()


def test_a_slow_cable_is_no_silence(
    agent: tuple[Store, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, device = agent
    monkeypatch.setattr(module, "SILENCE_SECONDS", SILENCE_SECONDS)
    here, arrived = Store(tmp_path / "here"), list[int]()
    blob = _blob(here)

    with Network(None) as network, AgentClient(network, device) as client:
        sent, present = client.send_blobs(here, [blob], arrived.append)

    assert (sent, present) == (blob.size_bytes, 0)
    assert sum(arrived) == blob.size_bytes
    assert hashlib.sha256(there.read(blob)).hexdigest() == blob.digest.removeprefix("sha256:")


def test_large_chunks_would_look_like_silence(
    agent: tuple[Store, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(module, "LEAST_CHUNK_BYTES", control.CHUNK_BYTES)
    here = Store(tmp_path / "here")

    with (
        Network(None) as network,
        AgentClient(network, agent[1]) as client,
        pytest.raises(LinkError, match="stopped answering"),
    ):
        client.send_blobs(here, [_blob(here)])


@pytest.mark.parametrize(
    ("now", "size", "seconds", "then"),
    [
        (LEAST_CHUNK_BYTES, LEAST_CHUNK_BYTES, 0.01, 2 * LEAST_CHUNK_BYTES),
        (4 * LEAST_CHUNK_BYTES, LEAST_CHUNK_BYTES, 0.01, 4 * LEAST_CHUNK_BYTES),
        (control.CHUNK_BYTES, control.CHUNK_BYTES, 0.01, control.CHUNK_BYTES),
        (2 * LEAST_CHUNK_BYTES, 2 * LEAST_CHUNK_BYTES, 0.5, 2 * LEAST_CHUNK_BYTES),
        (4 * LEAST_CHUNK_BYTES, 4 * LEAST_CHUNK_BYTES, 2.0, 2 * LEAST_CHUNK_BYTES),
        (LEAST_CHUNK_BYTES, LEAST_CHUNK_BYTES, 5.0, LEAST_CHUNK_BYTES),
    ],
)
def test_chunks_are_as_long_as_the_cable_is_fast(
    now: int, size: int, seconds: float, then: int
) -> None:
    assert chunk_bytes(now, size, seconds) == then

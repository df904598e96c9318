"""What goes wrong becomes a clear error in time, and never leaves a process behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgeshard.errors import BusyError, DeviceError, EdgeShardError, InputError, LinkError
from edgeshard.runtime.client import Client
from edgeshard.runtime.local import LocalCluster
from support.runtime_chain import connect, deploy_double, family, local_cluster, status
from support.runtime_double import expected

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]
LIMIT_SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(tmp_path_factory.mktemp("faults"), memory_mib=250) as cluster:
            yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with connect(cluster) as client:
        yield client


def serves(client: Client) -> bool:
    result = client.generate("after", raw=True, max_tokens=4).finish()
    return list(result.token_ids) == expected(b"after", 4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_killed_worker_ends_every_request_with_its_name(
    cluster: LocalCluster, client: Client, index: int
) -> None:
    deploy_double(cluster, "slow")
    running = [client.generate("x" * n, raw=True, max_tokens=50) for n in (1, 2, 3)]  # one waits
    for generation in running[:2]:
        next(generation)
    os.kill(status(cluster, index).stage_pid, signal.SIGKILL)
    started = time.monotonic()
    for generation in running:
        with pytest.raises(DeviceError, match=f"stage {index} on device-{index}.*SIGKILL"):
            generation.finish()
    assert time.monotonic() - started < LIMIT_SECONDS
    with pytest.raises(DeviceError, match=r"SIGKILL; deploy again"):
        client.generate("later", raw=True).finish()
    if index == 2:
        deploy_double(cluster)
        assert serves(client)


def test_a_frozen_agent_ends_every_request(cluster: LocalCluster, client: Client) -> None:
    deploy_double(cluster, "slow")
    generation = client.generate("x", raw=True, max_tokens=63)
    next(generation)
    frozen = psutil.Process(status(cluster, 1).pid)
    worker = psutil.Process(status(cluster, 1).stage_pid)
    frozen.suspend()
    worker.suspend()
    started = time.monotonic()
    try:
        with pytest.raises(DeviceError, match="stage 1 on device-1"):
            generation.finish()
        assert time.monotonic() - started < LIMIT_SECONDS
    finally:
        frozen.resume()
        worker.resume()
    deploy_double(cluster)
    assert serves(client)


def test_a_stage_that_freezes_alone_is_noticed_by_the_one_before(
    cluster: LocalCluster, client: Client
) -> None:
    deploy_double(cluster, "slow")
    generation = client.generate("x", raw=True, max_tokens=63)
    next(generation)
    worker = psutil.Process(status(cluster, 1).stage_pid)
    worker.suspend()
    started = time.monotonic()
    try:
        with pytest.raises(DeviceError, match="stage 0 on device-0 is blocked: the connection to"):
            generation.finish()
        assert time.monotonic() - started < LIMIT_SECONDS
    finally:
        worker.resume()
    deploy_double(cluster)
    assert serves(client)


def test_a_stage_that_stands_still_for_a_moment_holds_up_everyone_and_loses_nothing(
    cluster: LocalCluster, client: Client
) -> None:
    deploy_double(cluster, "slow")
    words = ("x", "yes", "zebra")
    running = [client.generate(word, raw=True, max_tokens=60, ignore_eos=True) for word in words]
    for generation in running:
        next(generation)
    worker = psutil.Process(status(cluster, 1).stage_pid)
    worker.suspend()
    try:
        time.sleep(0.45)  # shorter than what counts as gone
    finally:
        worker.resume()
    for word, generation in zip(words, running, strict=True):
        result = generation.finish()
        assert list(result.token_ids) == expected(word.encode(), 60)
        assert max(result.token_seconds) >= 0.4


def test_a_deadline_ends_an_answer_as_it_is(cluster: LocalCluster, client: Client) -> None:
    deploy_double(cluster, "slow")
    result = client.generate(
        "x", raw=True, max_tokens=60, ignore_eos=True, deadline_seconds=0.5
    ).finish()
    assert result.finish_reason == "deadline"
    assert list(result.token_ids) == expected(b"x", 60)[: len(result.token_ids)]
    assert len(result.token_ids) < 60
    assert serves(client)


def test_a_client_that_is_gone_frees_every_stage_within_a_second(cluster: LocalCluster) -> None:
    deploy_double(cluster, "slow")
    client = connect(cluster)
    for word in ("x", "y"):
        next(client.generate(word, raw=True, max_tokens=60, ignore_eos=True))
    client.close()
    started = time.monotonic()
    while any(held(cluster, index) for index in range(3)):
        assert time.monotonic() - started < 1.0


def held(cluster: LocalCluster, index: int) -> int:
    stage = status(cluster, index).stage
    assert stage is not None
    return stage.open_slots


def test_a_full_queue_refuses_at_once_and_says_when_to_ask_again(
    cluster: LocalCluster, client: Client
) -> None:
    deploy_double(cluster, "slow")
    running = [client.generate("x", raw=True, max_tokens=60, ignore_eos=True) for _ in range(66)]
    next(running[0])
    with pytest.raises(BusyError, match="at most 64 may; ask again in") as caught:
        client.generate("y", raw=True).finish()
    assert caught.value.retry_seconds is not None
    assert caught.value.retry_seconds > 0
    for generation in running:
        generation.close()
    assert serves(client)


def test_a_killed_coordinator_ends_every_request(cluster: LocalCluster, client: Client) -> None:
    deploy_double(cluster, "slow")
    generation = client.generate("x", raw=True, max_tokens=63)
    next(generation)
    os.kill(status(cluster, 0).coordinator_pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(LinkError, match="does not answer"):
        generation.finish()
    assert time.monotonic() - started < LIMIT_SECONDS + 1


def test_a_hung_kernel_is_noticed_by_the_silence(cluster: LocalCluster, client: Client) -> None:
    deploy_double(cluster, ["double", "hang", "double"], silence_seconds=1.0)
    generation = client.generate("x", raw=True, max_tokens=50)
    with pytest.raises(DeviceError, match="no stage has finished a step for 1 s"):
        generation.finish()


def test_a_kernel_that_raises_ends_one_request_alone(cluster: LocalCluster, client: Client) -> None:
    deploy_double(cluster, ["double", "broken", "double"])
    with pytest.raises(DeviceError, match="stage 1 on device-1: the kernel fell over"):
        client.generate("x", raw=True, max_tokens=50).finish()
    assert serves(client)


def test_a_worker_beyond_its_budget_is_killed_by_name(cluster: LocalCluster) -> None:
    with pytest.raises(DeviceError, match=r"device-2 held \d+ MiB, its limit is 250 MiB"):
        deploy_double(cluster, ["double", "double", "greedy"])
    for index in range(3):
        assert status(cluster, index).stage is None


def test_a_stage_that_cannot_open_fails_the_deploy_by_name(cluster: LocalCluster) -> None:
    with pytest.raises(DeviceError, match="provider missing is not installed"):
        deploy_double(cluster, ["double", "missing", "double"])
    assert status(cluster, 0).stage is None


def test_a_changed_blob_is_refused(cluster: LocalCluster) -> None:
    deploy_double(cluster)
    blobs = cluster.folder / "operator-store" / "blobs"
    victim = next(path for path in blobs.iterdir() if path.suffix == ".safetensors")
    data = victim.read_bytes()
    for name in cluster.names:
        (cluster.store_path(name) / "blobs" / victim.name).unlink(missing_ok=True)
    victim.chmod(0o644)
    try:
        victim.write_bytes(b"X" + data[1:])
        with pytest.raises(EdgeShardError, match="is changed: expected sha256"):
            deploy_double(cluster)
    finally:
        victim.write_bytes(data)


def test_an_agent_without_our_key_looks_like_none(cluster: LocalCluster, tmp_path: Path) -> None:
    from edgeshard.runtime.agent_client import AgentClient
    from edgeshard.runtime.channel import KeyPair, Network

    with (
        Network(KeyPair.generate()) as network,
        AgentClient(network, cluster.cluster.devices[0]) as agent,
        pytest.raises(LinkError, match=r"within 5 s: start `esc agent` there.*keys"),
    ):
        agent.status()


def test_an_agent_with_another_key_does_not_start(tmp_path: Path) -> None:
    from edgeshard.runtime.agent import Agent, AgentConfig

    with local_cluster(tmp_path / "other", num_devices=1) as other:
        config = AgentConfig(
            cluster=str(other.cluster_path),
            name="device-0",
            key=str(other.key_path),
            store=str(tmp_path / "store"),
        )
        with pytest.raises(InputError, match="is not that of device-0"):
            Agent(config)


def test_sigterm_lets_requests_finish_and_takes_no_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with local_cluster(tmp_path / "drain") as cluster:
        deploy_double(cluster, "slow")
        with connect(cluster) as client:
            generation = client.generate("x", raw=True, max_tokens=60)
            next(generation)
            cluster.agents[1].terminate()
            refusal = ""
            while not refusal:
                try:
                    client.generate("y", raw=True, max_tokens=1).finish()
                except DeviceError as error:
                    refusal = str(error)
            assert "device-1 is stopping; no new requests are taken" in refusal
            assert list(generation.finish().token_ids) == expected(b"x", 60)
            assert cluster.agents[1].wait_ended(LIMIT_SECONDS)


@pytest.mark.parametrize("how", ["leave", "kill"])
def test_no_process_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with local_cluster(tmp_path / "left") as cluster:
        deploy_double(cluster, ["double", "hang", "double"])
        with connect(cluster) as client, client.generate("x", raw=True, max_tokens=50) as one:
            next(one)
            everyone = family(cluster)
            assert len(everyone) == 7
            if how == "kill":
                for agent in cluster.agents:
                    os.kill(agent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(everyone, timeout=LIMIT_SECONDS)
    assert alive == []

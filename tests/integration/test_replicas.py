"""Two chains with a source each, as real processes: requests go where they wait least."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeshard.errors import LinkError
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.replicas import Replicas
from support.runtime_chain import deploy_double, local_cluster, status
from support.runtime_double import SLOTS, expected

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]
LIMIT_SECONDS = 10.0
LONG = {"raw": True, "max_tokens": 50, "ignore_eos": True}


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalCluster]]:
    folders = [tmp_path_factory.mktemp(name) / "cluster" for name in "ab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(folders[0], num_devices=1) as one:
            shutil.copytree(one.key_path.parent, folders[1] / "keys")  # one operator for both
            with local_cluster(folders[1], num_devices=1) as other:
                for chain in (one, other):
                    deploy_double(chain, "slow")
                yield [one, other]


@pytest.fixture
def replicas(chains: list[LocalCluster]) -> Iterator[Replicas]:
    paths = [chain.cluster_path for chain in chains]
    with Replicas.connect(paths, chains[0].key_path) as found:
        yield found


def running(chain: LocalCluster) -> int:
    stage = status(chain, 0).stage
    assert stage is not None
    return stage.open_slots


def test_requests_fill_both_and_the_next_one_waits_where_it_is_shortest(
    chains: list[LocalCluster], replicas: Replicas
) -> None:
    asked = []
    for number in range(2 * SLOTS):
        asked.append(replicas.generate(f"prompt {number}", **LONG))  # type: ignore[arg-type]
        next(asked[-1])
    assert [running(chain) for chain in chains] == [SLOTS, SLOTS]
    loads = replicas.loads()
    assert all(load is not None and load.num_per_slot == 1 for load in loads)
    assert all(load is not None and load.wait_seconds > 0 for load in loads)
    for number, generation in enumerate(asked):
        assert list(generation.finish().token_ids) == expected(f"prompt {number}".encode(), 50)


def test_a_chain_that_is_full_is_left_for_one_that_is_not(
    chains: list[LocalCluster], replicas: Replicas
) -> None:
    deploy_double(chains[0], "hang")  # its requests hold their slots for ever
    with Replicas.connect([chains[0].cluster_path], chains[0].key_path) as first:
        asked = [first.generate(f"prompt {n}", **LONG) for n in range(SLOTS)]  # type: ignore[arg-type]
        deadline = time.monotonic() + LIMIT_SECONDS
        while (load := first.loads()[0]) is None or load.num_per_slot < 1:
            assert time.monotonic() < deadline
        for _ in range(3):
            result = replicas.generate("x", raw=True, max_tokens=2).finish()
            assert list(result.token_ids) == expected(b"x", 2)
        for generation in asked:
            generation.close()


def test_a_chain_that_is_gone_is_left_out(chains: list[LocalCluster], replicas: Replicas) -> None:
    os.kill(status(chains[0], 0).coordinator_pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_SECONDS
    while replicas.loads()[0] is not None:
        assert time.monotonic() < deadline
    for _ in range(3):
        result = replicas.generate("x", raw=True, max_tokens=2).finish()
        assert list(result.token_ids) == expected(b"x", 2)
    os.kill(status(chains[1], 0).coordinator_pid, signal.SIGKILL)
    while replicas.loads()[1] is not None:
        assert time.monotonic() < deadline
    with pytest.raises(LinkError, match="none of 2 chains takes requests"):
        replicas.generate("x", raw=True)

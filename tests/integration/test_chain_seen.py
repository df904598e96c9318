"""What a chain shows of itself, and that no prompt is in it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeshard.runtime import log
from edgeshard.runtime.local import LocalCluster
from support.runtime_chain import connect, deploy_double, local_cluster
from support.runtime_double import expected

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]
SECRET = "xylophone zeppelin"
TOKENS = 20
LIMIT_SECONDS = 10.0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three agents that say all they can, after one secret answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv(log.VARIABLE, log.JSON)
        with local_cluster(tmp_path_factory.mktemp("seen"), metrics=True) as cluster:
            deploy_double(cluster)
            with connect(cluster) as client:
                asked = {"raw": True, "max_tokens": TOKENS, "ignore_eos": True}
                client.generate(SECRET, **asked).finish()  # type: ignore[arg-type]
            yield cluster


def scrape(place: str) -> str:
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as reply:
        return str(reply.read().decode())


def sample(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return float(one.value)
    return None


def until(is_true: Callable[[], bool]) -> None:
    """Figures come once a second: look again until they are there."""
    deadline, pause = time.monotonic() + LIMIT_SECONDS, threading.Event()
    while not is_true():
        assert time.monotonic() < deadline
        pause.wait(0.05)


def _steps(place: str) -> float | None:
    return sample(scrape(place), "edgeshard_stage_step_seconds_count")


def test_every_stage_counts_its_steps(chain: LocalCluster) -> None:
    for place in chain.metrics_places:
        until(lambda: _steps(place) == TOKENS)  # noqa: B023  # called before the next place
        text = scrape(place)
        assert sample(text, "edgeshard_stage_positions_total") == len(SECRET) + TOKENS - 1
        assert sample(text, "edgeshard_stage_open_slots") == 0
        assert (sample(text, "edgeshard_hop_received_bytes_total") or 0) > 0
        memory = sample(text, "edgeshard_resident_memory_bytes", process="stage")
        assert (memory or 0) > 2**20


def test_the_source_counts_requests_and_tokens(chain: LocalCluster) -> None:
    place = chain.metrics_places[0]
    until(lambda: sample(scrape(place), "edgeshard_tokens_total") == TOKENS)
    text = scrape(place)
    assert sample(text, "edgeshard_requests_total", outcome="length") == 1
    assert sample(text, "edgeshard_requests_total", outcome="refused") == 0
    assert sample(text, "edgeshard_token_seconds_count") == TOKENS - 1
    assert sample(text, "edgeshard_chain_up") == 1
    assert sample(scrape(chain.metrics_places[1]), "edgeshard_tokens_total") is None


def test_no_metric_has_a_prompt_a_token_or_a_key(chain: LocalCluster) -> None:
    text = "".join(scrape(place) for place in chain.metrics_places)
    public = [device.public_key for device in chain.cluster.devices]
    assert [one for one in (*SECRET.split(), *public) if one in text] == []


def logged(chain: LocalCluster, name: str) -> list[dict[str, object]]:
    text = (chain.folder / f"{name}.log").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_log_is_json_with_an_event(chain: LocalCluster) -> None:
    lines = [line for name in chain.names for line in logged(chain, name)]
    assert all({"time", "level", "process", "pid", "event", "text"} <= set(line) for line in lines)
    assert {"agent", "worker", "coordinator"} == {line["process"] for line in lines}


def test_a_log_tells_the_life_of_the_chain_and_of_a_request(chain: LocalCluster) -> None:
    until(lambda: any(line["event"] == "request.ended" for line in logged(chain, "device-0")))
    lines = {str(line["event"]): line for line in logged(chain, "device-0")}
    assert {"agent.started", "stage.ready", "chain.up"} <= set(lines)
    assert lines["command"]["command"] in ("Load", "StartCoordinator")
    assert (lines["request.ended"]["outcome"], lines["request.ended"]["tokens"]) == (
        "length",
        TOKENS,
    )


def test_no_log_has_a_prompt_an_answer_or_a_key(chain: LocalCluster) -> None:
    text = "".join((chain.folder / f"{name}.log").read_text("utf-8") for name in chain.names)
    answer = bytes(expected(SECRET.encode(), TOKENS)).decode("utf-8", "replace")
    keys = [chain.keys.public, chain.keys.secret]
    keys += [device.public_key for device in chain.cluster.devices]
    assert [one for one in (*SECRET.split(), answer, *keys) if one in text] == []

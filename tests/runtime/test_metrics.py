"""Metrics over HTTP: on loopback, in Prometheus' words."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator, Mapping
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime import metrics
from edgeshard.runtime.ask import FinishReason
from edgeshard.runtime.control import StageState
from edgeshard.runtime.figures import (
    CoordinatorFigures,
    Distribution,
    Figures,
    StageFigures,
)
from edgeshard.runtime.metrics import AgentCollector, MetricsServer, parse_place
from edgeshard.runtime.tenant import Role

TIMES = Distribution((0.1, 1.0), (3, 2, 1), 4.5)
STAGE = StageFigures(
    index=1,
    step_seconds=TIMES,
    positions=70,
    received_bytes=1000,
    sent_bytes=2000,
    in_flight_bytes=500,
    credit_bytes=900,
    blocked_seconds=1.5,
    refused={"stale epoch": 4},
    open_slots=1,
    slots=2,
    kv_bytes=300,
    kv_capacity_bytes=4000,
)
COORDINATOR = CoordinatorFigures(
    is_up=True,
    requests={"stop": 5, "deadline": 1, "refused": 7},
    refusals={"BusyError": 4, "InputError": 2, "ArtifactError": 1},
    tokens=99,
    prompt_tokens=40,
    kept_tokens=8,
    running=1,
    waiting=3,
    slots=2,
    steps_in_flight=1,
    blocked_seconds=2.5,
    first_token_seconds=TIMES,
    token_seconds=TIMES,
)


class FakeTenant:
    """What a collector reads of a child."""

    def __init__(self, figures: Figures | None, *, has_ended: bool = False) -> None:
        self.figures = figures
        self.has_ended = has_ended
        self.state: StageState = "ready"
        self.pid = 1


def read(tenants: Mapping[Role, FakeTenant]) -> dict[tuple[str, str], float]:
    """Samples by name and labels."""
    registry = CollectorRegistry()
    registry.register(AgentCollector("laptop", lambda: tenants))  # type: ignore[arg-type, return-value]  # doubles
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def test_a_stage_is_told_with_units_and_totals() -> None:
    found = read({"stage": FakeTenant(STAGE)})
    assert found["edgeshard_stage_step_seconds_bucket", "le=0.1"] == 3
    assert found["edgeshard_stage_step_seconds_bucket", "le=1.0"] == 5
    assert found["edgeshard_stage_step_seconds_bucket", "le=+Inf"] == 6
    assert found["edgeshard_stage_step_seconds_count", ""] == 6
    assert found["edgeshard_stage_step_seconds_sum", ""] == 4.5
    assert found["edgeshard_hop_sent_bytes_total", ""] == 2000
    assert found["edgeshard_hop_in_flight_bytes", ""] == 500
    assert found["edgeshard_hop_credit_bytes", ""] == 900
    assert found["edgeshard_hop_blocked_seconds_total", ""] == 1.5
    assert found["edgeshard_stage_refused_messages_total", "reason=stale_epoch"] == 4
    assert found["edgeshard_stage_kv_bytes", ""] == 300
    assert found["edgeshard_process_state", "process=stage,state=ready"] == 1
    assert found["edgeshard_process_state", "process=stage,state=failed"] == 0


def test_the_coordinator_is_told() -> None:
    found = read({"coordinator": FakeTenant(COORDINATOR)})
    assert found["edgeshard_chain_up", ""] == 1
    assert found["edgeshard_requests_total", "outcome=stop"] == 5
    assert found["edgeshard_requests_total", "outcome=failed"] == 0
    assert found["edgeshard_requests_total", "outcome=deadline"] == 1
    assert found["edgeshard_refusals_total", "reason=busy"] == 4
    assert found["edgeshard_refusals_total", "reason=input"] == 2
    assert found["edgeshard_refusals_total", "reason=protocol"] == 0
    assert found["edgeshard_refusals_total", "reason=other"] == 1
    assert found["edgeshard_requests_waiting", ""] == 3
    assert found["edgeshard_tokens_total", ""] == 99
    assert found["edgeshard_blocked_seconds_total", ""] == 2.5


def test_every_way_to_end_has_an_outcome() -> None:
    assert {*get_args(FinishReason), "failed", "refused"} == set(metrics.OUTCOMES)


def test_a_child_that_is_gone_counts_nothing_any_more() -> None:
    found = read({"stage": FakeTenant(STAGE, has_ended=True)})
    assert not any(name.startswith("edgeshard_stage") for name, _ in found)
    assert found["edgeshard_resident_memory_bytes", "process=agent"] > 0


def test_a_child_that_has_not_spoken_yet_has_a_state() -> None:
    found = read({"stage": FakeTenant(None)})
    assert found["edgeshard_process_state", "process=stage,state=ready"] == 1


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("9464", "no IP address"),
        ("localhost:9464", "no IP address"),
        ("127.0.0.1:", "no port"),
        ("127.0.0.1:65536", "no port"),
        ("127.0.0.1:-1", "no port"),
        ("0.0.0.0:9464", "--metrics-beyond-loopback"),
        ("[::]:9464", "--metrics-beyond-loopback"),
        ("192.168.1.7:9464", "--metrics-beyond-loopback"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_place(place, beyond_loopback=False)


def test_beyond_loopback_needs_its_name() -> None:
    address, port = parse_place("0.0.0.0:9464", beyond_loopback=True)
    assert (str(address), port) == ("0.0.0.0", 9464)


class One(Collector):
    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("edgeshard_one", "One.", value=1.0)


def test_metrics_are_served_until_closed() -> None:
    server = MetricsServer("127.0.0.1:0", False, One())
    url = f"http://127.0.0.1:{server.port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
    finally:
        server.close()
    assert [family.name for family in families] == ["edgeshard_one"]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_port_in_use_is_a_device_error() -> None:
    server = MetricsServer("127.0.0.1:0", False, One())
    try:
        with pytest.raises(DeviceError, match="choose another port"):
            MetricsServer(f"127.0.0.1:{server.port}", False, One())
    finally:
        server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_one_that_says_nothing_does_not_keep_the_others_out(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.05)
    try:
        server = MetricsServer(f"{host}:0", False, One())
    except DeviceError:
        pytest.skip("this machine has no IPv6")
    try:
        with socket.create_connection((host.strip("[]"), server.port)):
            url = f"http://{host}:{server.port}/"
            assert b"edgeshard_one 1.0" in urllib.request.urlopen(url, timeout=5).read()
    finally:
        server.close()
    assert "Traceback" not in capsys.readouterr().err

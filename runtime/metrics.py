"""An agent's figures for Prometheus: over HTTP, in its text format, on loopback.

    worker, coordinator ── Line(figures) ─► Tenant ◄── AgentCollector ◄── GET /metrics

Rule: whoever reaches the port may read, so it is closed unless asked for and stays on loopback
unless told otherwise by name. What is served are counts, sizes, times, states and the device's
name; nothing of a prompt, an answer, a token or a key. One scraper at a time, none for long.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from socketserver import TCPServer
from typing import get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime import log, machine
from edgeshard.runtime.control import StageState
from edgeshard.runtime.figures import CoordinatorFigures, Distribution, StageFigures
from edgeshard.runtime.tenant import Role, Tenant

SCRAPE_SECONDS = 5.0
OUTCOMES = ("stop", "length", "cancelled", "deadline", "failed", "refused")
# Why a request was refused, by the error that it ended with.
REASONS = {
    "BusyError": "busy",
    "InputError": "input",
    "LinkError": "protocol",
    "DeviceError": "chain",
}


class AgentCollector(Collector):
    """Reads an agent's children when it is asked."""

    def __init__(self, device: str, tenants: Callable[[], Mapping[Role, Tenant]]) -> None:
        self._device = device
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        info = {"version": version("edgeshard"), "device": self._device}
        yield InfoMetricFamily("edgeshard", "What runs here.", value=info)
        tenants = self._tenants()
        yield _memory(tenants)
        free = machine.free_bytes()
        yield _gauge("edgeshard_available_memory_bytes", "Could be taken without swapping.", free)
        yield _states(tenants)
        for tenant in tenants.values():
            if tenant.has_ended:
                continue
            match tenant.figures:
                case StageFigures() as stage:
                    yield from _stage(stage)
                case CoordinatorFigures() as coordinator:
                    yield from _coordinator(coordinator)


def _memory(tenants: Mapping[Role, Tenant]) -> Metric:
    memory = GaugeMetricFamily(
        "edgeshard_resident_memory_bytes", "Resident memory of each process.", labels=["process"]
    )
    memory.add_metric(["agent"], machine.resident_bytes(os.getpid()))
    for role, tenant in tenants.items():
        if not tenant.has_ended:
            memory.add_metric([role], machine.resident_bytes(tenant.pid))
    return memory


def _states(tenants: Mapping[Role, Tenant]) -> Metric:
    states = GaugeMetricFamily(
        "edgeshard_process_state",
        "1 for the state that a child is in.",
        labels=["process", "state"],
    )
    for role, tenant in tenants.items():
        for state in get_args(StageState):
            states.add_metric([role, state], float(tenant.state == state))
    return states


def _stage(one: StageFigures) -> Iterator[Metric]:
    yield _gauge("edgeshard_stage_index", "Which stage of the chain runs here.", one.index)
    yield _histogram("edgeshard_stage_step_seconds", "Computing a step.", one.step_seconds)
    yield _counter("edgeshard_stage_positions", "Positions computed, of all rows.", one.positions)
    yield _counter(
        "edgeshard_hop_received_bytes",
        "Headers and payloads from the hop before.",
        one.received_bytes,
    )
    yield _counter("edgeshard_hop_sent_bytes", "Headers and payloads to the next.", one.sent_bytes)
    yield _gauge("edgeshard_hop_in_flight_bytes", "Sent and not acknowledged.", one.in_flight_bytes)
    yield _gauge("edgeshard_hop_credit_bytes", "What may be in flight.", one.credit_bytes)
    yield _counter(
        "edgeshard_hop_blocked_seconds", "The next stage took nothing.", one.blocked_seconds
    )
    refused = CounterMetricFamily(
        "edgeshard_stage_refused_messages", "Messages that were not applied.", labels=["reason"]
    )
    for reason, count in one.refused.items():
        refused.add_metric([reason.replace(" ", "_")], count)
    yield refused
    yield _gauge("edgeshard_stage_open_slots", "Slots that requests hold.", one.open_slots)
    yield _gauge("edgeshard_stage_slots", "Slots that there are.", one.slots)
    yield _gauge("edgeshard_stage_kv_bytes", "Keys and values of open requests.", one.kv_bytes)
    yield _gauge(
        "edgeshard_stage_kv_capacity_bytes",
        "Keys and values of all slots, full.",
        one.kv_capacity_bytes,
    )


def _coordinator(one: CoordinatorFigures) -> Iterator[Metric]:
    yield _gauge("edgeshard_chain_up", "1 while the chain takes requests.", float(one.is_up))
    requests = CounterMetricFamily(
        "edgeshard_requests", "Requests that are over, by how.", labels=["outcome"]
    )
    for outcome in OUTCOMES:
        requests.add_metric([outcome], one.requests.get(outcome, 0))
    yield requests
    refusals = CounterMetricFamily(
        "edgeshard_refusals", "Requests that never got a slot, by why.", labels=["reason"]
    )
    counts = dict.fromkeys((*REASONS.values(), "other"), 0)
    for kind, count in one.refusals.items():
        counts[REASONS.get(kind, "other")] += count
    for reason, count in counts.items():
        refusals.add_metric([reason], count)
    yield refusals
    yield _counter("edgeshard_tokens", "Tokens given to clients.", one.tokens)
    yield _counter("edgeshard_prompt_tokens", "Tokens of all prompts.", one.prompt_tokens)
    yield _counter("edgeshard_prompt_kept_tokens", "Of these, not computed again.", one.kept_tokens)
    yield _gauge("edgeshard_requests_running", "Requests that hold a slot.", one.running)
    yield _gauge("edgeshard_requests_waiting", "Requests that wait for one.", one.waiting)
    yield _gauge("edgeshard_slots", "Requests that can run at once.", one.slots)
    yield _gauge("edgeshard_steps_in_flight", "Steps on their way.", one.steps_in_flight)
    yield _counter("edgeshard_blocked_seconds", "Stage 0 took nothing.", one.blocked_seconds)
    yield _histogram(
        "edgeshard_first_token_seconds",
        "From a request to its first token.",
        one.first_token_seconds,
    )
    yield _histogram("edgeshard_token_seconds", "From token to token.", one.token_seconds)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, found: Distribution) -> Metric:
    bounds = [*map(floatToGoString, found.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(found.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=found.total_seconds)


class _Handler(WSGIRequestHandler):
    """One request, not for long, and not worth a line in the log."""

    timeout = SCRAPE_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class MetricsServer:
    """An HTTP server in a thread of its own."""

    def __init__(self, place: str, beyond_loopback: bool, collector: Collector) -> None:
        """Bind and serve.

        Raises:
            InputError: no address and port, or one beyond loopback that is not asked for by name.
            DeviceError: the port is in use.
        """
        host, port = parse_place(place, beyond_loopback)
        registry = CollectorRegistry()
        registry.register(collector)
        kind = _Server6 if host.version == 6 else _Server
        try:
            self._server = make_server(
                str(host), port, make_wsgi_app(registry), kind, handler_class=_Handler
            )
        except OSError as error:
            raise DeviceError(
                f"cannot serve metrics at {place}: {error.strerror or error}; choose another port"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it is bound."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SCRAPE_SECONDS)


class _Server(WSGIServer):
    """Asks no name server for our name, and does not fill the log when a scraper goes away."""

    def server_bind(self) -> None:
        """Bind."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that said nothing in time, or hung up."""
        log.note("metrics.dropped", "a scraper was dropped")


class _Server6(_Server):
    address_family = socket.AF_INET6


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_place(place: str, beyond_loopback: bool) -> tuple[Address, int]:
    """Address and port of `127.0.0.1:9464` or `[::1]:9464`.

    Raises:
        InputError: it is none, or lies beyond loopback though that was not asked for.
    """
    host, _, port = place.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InputError(
            f"metrics at {place!r}: {host!r} is no IP address; write 127.0.0.1:9464"
        ) from None
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise InputError(f"metrics at {place!r}: {port!r} is no port from 0 to 65535")
    if not (address.is_loopback or beyond_loopback):
        raise InputError(
            f"metrics at {place} could be read by anyone who reaches this device, without a key; "
            "bind 127.0.0.1 and forward the port, or add --metrics-beyond-loopback"
        )
    return address, int(port)

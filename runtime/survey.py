"""Asks every agent of a cluster what it is and runs, all at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
from rich.table import Table

from edgeshard.errors import EdgeShardError
from edgeshard.runtime.agent_client import AgentClient
from edgeshard.runtime.channel import KeyPair, Network
from edgeshard.runtime.control import AgentStatus
from edgeshard.schemas.cluster import Cluster, Device


class DeviceSurvey(msgspec.Struct, frozen=True):
    """One device: its status, or why there is none."""

    name: str
    endpoint: str
    status: AgentStatus | None
    error: str


def survey(cluster: Cluster, keys: KeyPair) -> list[DeviceSurvey]:
    """Ask every agent.

    Args:
        cluster: the devices.
        keys: of an operator.

    Returns:
        One entry a device, in the order of the file; agents that do not answer have an error.
    """
    with Network(keys) as network, ThreadPoolExecutor(len(cluster.devices)) as threads:
        return list(threads.map(lambda device: _ask(network, device), cluster.devices))


def _ask(network: Network, device: Device) -> DeviceSurvey:
    try:
        with AgentClient(network, device) as agent:
            return DeviceSurvey(device.name, device.control_endpoint, agent.status(), "")
    except EdgeShardError as error:
        return DeviceSurvey(device.name, device.control_endpoint, None, str(error))


def is_failed(device: DeviceSurvey) -> bool:
    """Whether the device's stage or coordinator has failed."""
    status = device.status
    if status is None:
        return True
    stage_failed = status.stage is not None and status.stage.state in ("failed", "blocked")
    return stage_failed or status.coordinator == "failed"


def survey_table(devices: list[DeviceSurvey]) -> Table:
    """The devices as a table."""
    table = Table("device", "stage", "units", "state", "resident", "limit", "free", "slots", "runs")
    for device in devices:
        status = device.status
        if status is None:
            table.add_row(device.name, "-", "-", "no answer")
            continue
        stage = status.stage
        runs = f"{status.onnxruntime}, {status.threads} threads"
        if status.coordinator:
            runs += f"; coordinator {status.coordinator}"
        limit = "-" if status.limit_bytes is None else _mib(status.limit_bytes)
        free = _mib(status.free_bytes)
        if stage is None:
            table.add_row(device.name, "-", "-", "idle", "-", limit, free, "-", runs)
            continue
        state = f"{stage.state}: {stage.reason}" if stage.reason else stage.state
        table.add_row(
            device.name,
            str(stage.index),
            f"{stage.start}-{stage.stop}",
            state,
            _mib(stage.resident_bytes),
            limit,
            free,
            str(stage.open_slots),
            runs,
        )
    return table


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"

"""The cost table: what the manifest and the profile say, in the shape that the planner needs.

    time of one token  =  entry + sum of stages (step overhead + units) + hops + way back
    memory of a stage  =  baseline + weights + KV (context x slots) + workspace

The table holds numbers only: whoever partitions it needs neither the manifest nor the profile. A
link that was not measured costs infinity; a device without the measurements it needs is not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.units import (
    ProviderCosts,
    SharedBlob,
    Workload,
    provider_costs,
    shared_blobs,
    unmeasured,
)
from edgeshard.schemas.common import Precision
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import LeftOut
from edgeshard.schemas.profile import DeviceProfile, LinkProfile, Profile

HEADER_BYTES = 200
"""About what a frame carries beside its tensor."""
ACTIVATION_BYTES = 4
"""Bytes of one fp32 value of a hidden state."""


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """What a stage costs on a device whatever its units, and its units by provider, best first.

    Attributes:
        loopback_seconds: a small frame from one process of the device to another.
    """

    name: str
    step_overhead_seconds: float
    loopback_seconds: float
    baseline_bytes: int
    workspace_bytes: int
    limit_bytes: int
    providers: tuple[ProviderCosts, ...]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Everything that decides a partition. Devices are meant by their index in `devices`.

    Attributes:
        source: the device that hosts unit 0.
        precision: that of the model's weights.
        unit_names: units in order.
        kv_bytes: keys and values of each unit for all slots; 0 beside blocks.
        shared: blobs that units share, by neighbouring users.
        hop_seconds: `[from][to]`, time of a decode step's frame.
        hop_busy_seconds: `[from][to]`, the part of it that the next frame has to wait for.
        prefill_hop_seconds: `[from][to]`, time of the whole prompt's hidden states.
        return_seconds: time of a token from each device to the source.
        entry_seconds: time of a token from the coordinator to the first stage.
        left_out: devices that the profile says too little of, and why.
    """

    source: int
    workload: Workload
    precision: Precision
    unit_names: tuple[str, ...]
    kv_bytes: tuple[int, ...]
    shared: tuple[SharedBlob, ...]
    devices: tuple[DeviceCosts, ...]
    hop_seconds: tuple[tuple[float, ...], ...]
    hop_busy_seconds: tuple[tuple[float, ...], ...]
    prefill_hop_seconds: tuple[tuple[float, ...], ...]
    return_seconds: tuple[float, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def num_units(self) -> int:
        """Units of the whole model."""
        return len(self.unit_names)

    @property
    def entry_seconds(self) -> float:
        """Time of a token from the coordinator to the first stage: both run on the source."""
        return self.devices[self.source].loopback_seconds


def build_costs(
    model: ModelManifest, profile: Profile, source: str, workload: Workload
) -> CostTable:
    """Make the cost table of a model on the devices of a profile.

    Args:
        model: the compiled model.
        profile: what was measured; devices keep their order.
        source: name of the device that owns the prompts.
        workload: what the predictions assume.

    Raises:
        InputError: the source is not in the profile, or the profile contradicts itself.
        PlanError: the profile says too little of the source.
    """
    names = [device.name for device in profile.devices]
    if len(set(names)) < len(names):
        raise InputError(f"the profile has two devices of one name among {', '.join(names)}")
    if source not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"source {source} is not in the profile, which has {known}")
    links = _links(profile)
    devices: list[DeviceCosts] = []
    left_out: list[LeftOut] = []
    for device in profile.devices:
        first_unit = 0 if device.name == source else 1
        providers = provider_costs(model, device, workload, first_unit)
        if providers:
            devices.append(_device(device, providers, links))
        else:
            reason = unmeasured(model, device, workload, first_unit)
            left_out.append(LeftOut(device=device.name, reason=reason))
    usable = [device.name for device in devices]
    if source not in usable:
        reason = next(left.reason for left in left_out if left.device == source)
        raise PlanError(f"source {source}: {reason}")
    frame_bytes = model.hidden_size * ACTIVATION_BYTES
    decode_bytes = frame_bytes + HEADER_BYTES
    prefill_bytes = frame_bytes * workload.prompt_tokens + HEADER_BYTES

    def hops(size_bytes: int, with_latency: bool) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(_transfer(links.get((a, b)), size_bytes, with_latency) for b in usable)
            for a in usable
        )

    block_bytes = model.kv.bytes_per_token() * workload.context * workload.slots
    return CostTable(
        source=usable.index(source),
        workload=workload,
        precision=model.precision,
        unit_names=tuple(unit.name for unit in model.units),
        kv_bytes=tuple(block_bytes if unit.kind == "block" else 0 for unit in model.units),
        shared=shared_blobs(model),
        devices=tuple(devices),
        hop_seconds=hops(decode_bytes, True),
        hop_busy_seconds=hops(decode_bytes, False),
        prefill_hop_seconds=hops(prefill_bytes, True),
        return_seconds=tuple(
            device.loopback_seconds
            if device.name == source
            else _transfer(links.get((device.name, source)), 0, True)
            for device in devices
        ),
        left_out=tuple(left_out),
    )


def _links(profile: Profile) -> dict[tuple[str, str], LinkProfile]:
    for link in profile.links:
        if not 0 < link.bytes_per_second < math.inf:
            raise InputError(
                f"the profile's link {link.source} -> {link.target} has {link.bytes_per_second} "
                "bytes per second, more than 0 are needed; run `esc profile` again"
            )
    return {(link.source, link.target): link for link in profile.links}


def _transfer(link: LinkProfile | None, size_bytes: int, with_latency: bool) -> float:
    if link is None:
        return math.inf
    latency = link.latency_seconds if with_latency else 0.0
    return latency + size_bytes / link.bytes_per_second


def _device(
    device: DeviceProfile,
    providers: tuple[ProviderCosts, ...],
    links: dict[tuple[str, str], LinkProfile],
) -> DeviceCosts:
    loopback = links.get((device.name, device.name))
    return DeviceCosts(
        name=device.name,
        step_overhead_seconds=device.step_overhead_seconds,
        loopback_seconds=loopback.latency_seconds if loopback else 0.0,
        baseline_bytes=device.baseline_bytes,
        workspace_bytes=device.workspace_bytes,
        limit_bytes=device.memory_bytes,
        providers=providers,
    )

"""The cost table: what the manifest and the profile say, in the shape that the planner needs.

    time of one token  =  entry + sum of stages (step overhead + units) + hops + way back
    memory of a stage  =  baseline + weights + KV (context x slots) + workspace

The table holds numbers only: whoever partitions it needs neither the manifest nor the profile. A
link that was not measured costs infinity; a device without the measurements it needs is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.units import (
    ModelCosts,
    ProviderCosts,
    Workload,
    model_costs,
    provider_costs,
    unmeasured,
)
from edgeshard.schemas.activation import state_bytes
from edgeshard.schemas.common import Objective
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import LeftOut
from edgeshard.schemas.profile import DeviceProfile, Profile

Seconds = npt.NDArray[np.float64]

HEADER_BYTES = 200
"""About what a frame carries beside its tensor."""


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


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Everything that decides a partition. Devices are meant by their index in `devices`.

    Attributes:
        source: the device that hosts unit 0.
        models: the model at each precision that a stage may have.
        unit_names: units in order.
        hop_seconds: `[from, to]`, time of a decode step's frame.
        hop_busy_seconds: `[from, to]`, the part of it that the next frame has to wait for.
        prefill_hop_seconds: `[from, to]`, time of the whole prompt's hidden states.
        return_seconds: `[from]`, time of a token from each device to the source.
        entry_seconds: time of a token from the coordinator to the first stage.
        left_out: devices that the profile says too little of, and why.
    """

    source: int
    workload: Workload
    models: tuple[ModelCosts, ...]
    unit_names: tuple[str, ...]
    devices: tuple[DeviceCosts, ...]
    hop_seconds: Seconds
    hop_busy_seconds: Seconds
    prefill_hop_seconds: Seconds
    return_seconds: Seconds
    left_out: tuple[LeftOut, ...]

    def mean(self, decode: Seconds, prefill: Seconds, objective: Objective) -> Seconds:
        """What counts for a token of the answer, of times of a decode step and of the prompt."""
        decode_share, prefill_share = self.workload.shares(objective)
        if not prefill_share:
            return decode
        if not decode_share:  # an unmeasured link's infinity times 0 is no number
            return prefill_share * prefill
        return decode_share * decode + prefill_share * prefill

    def busy_seconds(self, objective: Objective) -> Seconds:
        """`[from, to]`, how long a token of the answer keeps a link busy."""
        known = np.isfinite(self.hop_seconds)
        latency = np.zeros(known.shape)
        np.subtract(self.hop_seconds, self.hop_busy_seconds, out=latency, where=known)
        return self.mean(self.hop_busy_seconds, self.prefill_hop_seconds - latency, objective)

    @property
    def num_units(self) -> int:
        """Units of the whole model."""
        return len(self.unit_names)

    @property
    def entry_seconds(self) -> float:
        """Time of a token from the coordinator to the first stage: both run on the source."""
        return self.devices[self.source].loopback_seconds


def build_costs(
    model: ModelManifest,
    profile: Profile,
    source: str,
    workload: Workload,
    others: Sequence[ModelManifest] = (),
) -> CostTable:
    """Make the cost table of a model on the devices of a profile.

    Args:
        model: the compiled model.
        profile: what was measured; devices keep their order.
        source: name of the device that owns the prompts.
        workload: what the predictions assume.
        others: the same checkpoint at other precisions; of choices that take as long the first one
            is taken, `model` before these.

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
    latency, rate = _links(profile)
    owner = profile.devices[names.index(source)]
    models = (model, *others)
    at_source = provider_costs(models, owner, workload, 0)
    if not at_source:  # before the others are looked at: there may be many
        raise PlanError(f"source {source}: {unmeasured(model, owner, workload, 0)}")
    devices: list[DeviceCosts] = []
    left_out: list[LeftOut] = []
    usable: list[int] = []
    for index, device in enumerate(profile.devices):
        is_source = device is owner
        providers = at_source if is_source else provider_costs(models, device, workload, 1)
        if providers:
            usable.append(index)
            devices.append(_device(device, providers, float(latency[index, index])))
        else:
            reason = unmeasured(model, device, workload, 1)
            left_out.append(LeftOut(device=device.name, reason=reason))
    place = usable.index(names.index(source))
    frame_bytes = state_bytes(model.hidden_size, workload.activation)
    decode_bytes = frame_bytes * workload.batch + HEADER_BYTES
    prefill_bytes = frame_bytes * workload.prompt_tokens + HEADER_BYTES
    latency, rate = (table[np.ix_(usable, usable)] for table in (latency, rate))
    busy = np.where(np.isfinite(latency), decode_bytes / rate, np.inf)
    way_back = latency[:, place].copy()
    way_back[place] = devices[place].loopback_seconds
    return CostTable(
        source=place,
        workload=workload,
        models=tuple(model_costs(one, workload) for one in models),
        unit_names=tuple(unit.name for unit in model.units),
        devices=tuple(devices),
        hop_seconds=latency + decode_bytes / rate,
        hop_busy_seconds=busy,
        prefill_hop_seconds=latency + prefill_bytes / rate,
        return_seconds=way_back,
        left_out=tuple(left_out),
    )


def _links(profile: Profile) -> tuple[Seconds, Seconds]:
    """Latency and bytes per second of every pair of devices; infinite latency where unmeasured."""
    index = {device.name: number for number, device in enumerate(profile.devices)}
    latency = np.full((len(index), len(index)), np.inf)
    rate = np.ones((len(index), len(index)))
    for link in profile.links:
        if not 0 < link.bytes_per_second < math.inf:
            raise InputError(
                f"the profile's link {link.source} -> {link.target} has {link.bytes_per_second} "
                "bytes per second, more than 0 are needed; run `esc profile` again"
            )
        if link.source in index and link.target in index:
            pair = index[link.source], index[link.target]
            latency[pair], rate[pair] = link.latency_seconds, link.bytes_per_second
    return latency, rate


def _device(
    device: DeviceProfile, providers: tuple[ProviderCosts, ...], loopback_seconds: float
) -> DeviceCosts:
    return DeviceCosts(
        name=device.name,
        step_overhead_seconds=device.step_overhead_seconds,
        loopback_seconds=loopback_seconds if math.isfinite(loopback_seconds) else 0.0,
        baseline_bytes=device.baseline_bytes,
        workspace_bytes=device.workspace_bytes,
        limit_bytes=device.memory_bytes,
        providers=providers,
    )

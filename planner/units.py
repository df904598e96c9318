"""What each unit of a model costs on a device, for every provider that could run any of its stages.

Choosing a provider is part of planning, so a provider counts only where all units that the device
may get were measured with it, for the target that it runs and the model's precision. Of a model at
several precisions each is a choice of every stage, with each provider.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgeshard.errors import InputError
from edgeshard.planner import interpolate
from edgeshard.schemas.common import Activation, Objective, Precision, Transfers
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import DeviceProfile, UnitProfile
from edgeshard.schemas.targets import view_for


@dataclass(frozen=True, slots=True)
class Workload:
    """What the predictions assume.

    Attributes:
        context: positions that a slot has room for.
        slots: sequences that a stage has room for.
        prompt_tokens: length of the prompt.
        decode_context: positions held at the decode step that is predicted.
        new_tokens: length of the answer; 0: only what one decode step takes counts.
        batch: sequences that one decode step takes together.
        activation: how hidden states travel.
        head_at_source: the head is a stage of its own on the source, or the source has all units.
        transfers: whether a device computes while it sends and receives.
    """

    context: int
    slots: int
    prompt_tokens: int
    decode_context: int
    new_tokens: int = 0
    batch: int = 1
    activation: Activation = "fp32"
    head_at_source: bool = False
    transfers: Transfers = "overlapped"

    def shares(self, objective: Objective) -> tuple[float, float]:
        """What a decode step and a prefill count for a token of the answer; its first is a prefill.

        For throughput a step is of `batch` sequences, and each of them brings a prefill along.
        """
        if not self.new_tokens:
            return 1.0, 0.0
        num_prefills = self.batch if objective == "throughput" else 1
        return (self.new_tokens - 1) / self.new_tokens, num_prefills / self.new_tokens


@dataclass(frozen=True, slots=True)
class ProviderCosts:
    """What each unit costs on a device with a provider; infinite time where it was not measured.

    Attributes:
        weights_bytes: what a unit alone makes resident: the measured growth, at least its blobs.
        rows_differ: whether a unit computes a row of several otherwise than one alone.
        model: which of the cost table's models it runs, by its index.
    """

    provider: str
    decode_seconds: tuple[float, ...]
    prefill_seconds: tuple[float, ...]
    weights_bytes: tuple[int, ...]
    rows_differ: tuple[bool, ...] = ()
    model: int = 0

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from the device's others."""
        return self.provider, self.model


class _UnitCost(NamedTuple):
    """What was measured of a unit, as a workload reads it; infinite times: nothing was."""

    decode_seconds: float = math.inf
    prefill_seconds: float = math.inf
    resident_bytes: int = 0
    rows_differ: bool = False


@dataclass(frozen=True, slots=True)
class SharedBlob:
    """A blob that two units point at; a stage with both, `first < second`, holds it once."""

    first: int
    second: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """What a stage of a model holds beside its weights, whatever the device.

    Attributes:
        precision: of the model's weights.
        kv_bytes: keys and values of each unit for all slots; 0 beside blocks.
        shared: blobs that units share, by neighbouring users.
    """

    precision: Precision
    kv_bytes: tuple[int, ...]
    shared: tuple[SharedBlob, ...]


def model_costs(model: ModelManifest, workload: Workload) -> ModelCosts:
    """What a manifest says of a stage's memory."""
    block_bytes = model.kv.bytes_per_token() * workload.context * workload.slots
    return ModelCosts(
        precision=model.precision,
        kv_bytes=tuple(block_bytes if unit.kind == "block" else 0 for unit in model.units),
        shared=shared_blobs(model),
    )


def provider_costs(
    models: Sequence[ModelManifest], device: DeviceProfile, workload: Workload, first_unit: int
) -> tuple[ProviderCosts, ...]:
    """Costs by model and provider, in the models' and then in the device's order of preference.

    Args:
        models: the compiled model, at each of its precisions.
        device: what was measured of the device.
        workload: what the predictions assume.
        first_unit: first unit that the device may get; 1 beside the source.
    """
    found = []
    for (number, model), provider in itertools.product(enumerate(models), device.providers):
        view = _view(model, workload, provider)
        if view is None:
            continue
        costs = []
        for index, cost in enumerate(_unit_costs(view, device, workload, provider)):
            if index >= first_unit and not _is_measured(cost):
                break
            costs.append(cost)
        else:
            blobs = tuple(_blob_bytes(view, index) for index in range(len(view.units)))
            found.append(
                ProviderCosts(
                    provider=provider,
                    decode_seconds=tuple(cost.decode_seconds for cost in costs),
                    prefill_seconds=tuple(cost.prefill_seconds for cost in costs),
                    weights_bytes=tuple(
                        max(cost.resident_bytes, least)
                        for cost, least in zip(costs, blobs, strict=True)
                    ),
                    rows_differ=tuple(cost.rows_differ for cost in costs),
                    model=number,
                )
            )
    return tuple(found)


def unmeasured(
    model: ModelManifest, device: DeviceProfile, workload: Workload, first_unit: int
) -> str:
    """Why no provider of the device can be planned with: the best one's gap, and the next step."""
    best, total = -1, 0
    for provider in device.providers:
        view = _view(model, workload, provider)
        if view is None:
            continue
        needed = {unit.structure for unit in view.units[first_unit:]}
        pairs = zip(view.units, _unit_costs(view, device, workload, provider), strict=True)
        count = len({unit.structure for unit, cost in pairs if _is_measured(cost)} & needed)
        if count > best:
            best, total = count, len(needed)
    if best < 0:
        return (
            f"{' and '.join(device.providers) or 'no provider'} cannot run {model.name} (target "
            f"{' and '.join(model.targets)}, {model.activations}) with context {workload.context}; "
            "compile with another --target or --context"
        )
    return (
        f"its profile has decode and prefill of {best} of the {total} unit structures "
        f"of {model.name} (target {' and '.join(model.targets)}, precision {model.precision}); "
        "run `esc profile` for this model"
    )


def shared_blobs(model: ModelManifest) -> tuple[SharedBlob, ...]:
    """Each blob's neighbouring users: a stage with k users of a blob holds k - 1 such pairs."""
    last_user: dict[str, int] = {}
    pairs = []
    for index, unit in enumerate(model.units):
        for digest, size_bytes in {blob.digest: blob.size_bytes for blob in unit.weights}.items():
            if digest in last_user:
                pairs.append(SharedBlob(last_user[digest], index, size_bytes))
            last_user[digest] = index
    return tuple(pairs)


def _view(model: ModelManifest, workload: Workload, provider: str) -> ModelManifest | None:
    """The model as a provider runs it; None where it cannot, or not with such a context."""
    try:
        view = view_for(model, provider)
    except InputError:
        return None
    return view if view.kv.context in (None, workload.context) else None


def _unit_costs(
    model: ModelManifest, device: DeviceProfile, workload: Workload, provider: str
) -> Iterator[_UnitCost]:
    """The cost of each unit, as far as they are read."""
    wanted = (provider, model.target, model.precision)
    by_structure = {
        unit.structure: unit
        for unit in device.units
        if (unit.provider, unit.target, unit.precision) == wanted
    }
    known: dict[str, _UnitCost] = {}
    for structure in (unit.structure for unit in model.units):
        if structure not in known:
            measured = by_structure.get(structure)
            known[structure] = _UnitCost() if measured is None else _unit_cost(measured, workload)
        yield known[structure]


def _unit_cost(unit: UnitProfile, workload: Workload) -> _UnitCost:
    decode = interpolate.decode_seconds(unit.decode, workload.decode_context, workload.batch)
    prefill = interpolate.prefill_seconds(unit.prefill, workload.prompt_tokens)
    return _UnitCost(
        math.inf if decode is None else decode,
        math.inf if prefill is None else prefill,
        unit.resident_bytes,
        unit.rows_alike is False,
    )


def _is_measured(cost: _UnitCost) -> bool:
    return math.isfinite(cost.decode_seconds) and math.isfinite(cost.prefill_seconds)


def _blob_bytes(model: ModelManifest, index: int) -> int:
    return sum({blob.digest: blob.size_bytes for blob in model.units[index].weights}.values())

"""Every chain there is: all ordered device subsets, cuts, providers, precisions; clear, not fast.

Reads the manifest and the profile itself, so that it shares no code with the planner.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import DeviceProfile, Profile, UnitProfile

ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class Chain:
    """A chain that its links allow; it fits where it lacks no bytes."""

    devices: tuple[str, ...]
    latency_seconds: float
    bottleneck_seconds: float
    missing_bytes: int


def every_chain(
    model: ModelManifest,
    profile: Profile,
    source: str,
    context: int,
    slots: int,
    head_at_source: bool = False,
    others: Sequence[ModelManifest] = (),
) -> Iterator[Chain]:
    devices = {device.name: device for device in profile.devices}
    for names, spans in _every_cut(len(model.units), list(devices), source, head_at_source):
        choices = [itertools.product((model, *others), devices[name].providers) for name in names]
        for chosen in itertools.product(*choices):
            seconds: defaultdict[str, float] = defaultdict(float)
            held: defaultdict[str, int] = defaultdict(int)
            for name, (of, provider), span in zip(names, chosen, spans, strict=True):
                stage = _stage(of, devices[name], provider, span, context, slots, source)
                seconds[name] += stage[0]
                held[name] += stage[1]
            hops = _hops(model, profile, names)
            latency = sum(seconds.values()) + sum(hop for hop, _ in hops)
            if math.isfinite(latency):
                yield Chain(
                    names,
                    latency,
                    max([*seconds.values(), *(busy for _, busy in hops)]),
                    sum(max(0, held[name] - devices[name].memory_bytes) for name in held),
                )


def _every_cut(
    num_units: int, devices: list[str], source: str, head_at_source: bool
) -> Iterator[tuple[tuple[str, ...], list[tuple[int, int]]]]:
    """Devices in order, and the units of each; the source comes twice where it has the head."""
    others = [name for name in devices if name != source]
    for num_others in range(len(others) + 1):
        for order in itertools.permutations(others, num_others):
            is_split = head_at_source and num_others > 0
            stop = num_units - is_split
            for cuts in itertools.combinations(range(1, stop), num_others):
                spans = list(itertools.pairwise((0, *cuts, stop)))
                if is_split:
                    yield (source, *order, source), [*spans, (stop, num_units)]
                else:
                    yield (source, *order), spans


def best_latency(chains: list[Chain]) -> float:
    return min(chain.latency_seconds for chain in chains)


def best_throughput(chains: list[Chain]) -> tuple[float, float]:
    """The smallest bottleneck, and the smallest latency with it."""
    bottleneck = min(chain.bottleneck_seconds for chain in chains)
    ties = [chain for chain in chains if chain.bottleneck_seconds <= bottleneck * ROUNDING]
    return bottleneck, best_latency(ties)


def _stage(
    model: ModelManifest,
    device: DeviceProfile,
    provider: str,
    span: tuple[int, int],
    context: int,
    slots: int,
    source: str,
) -> tuple[float, int]:
    """Seconds and bytes of a stage; infinite where the provider is not fully measured."""
    profiles: dict[str, UnitProfile] = {
        unit.structure: unit
        for unit in device.units
        if (unit.provider, unit.precision) == (provider, model.precision)
    }
    may_get = model.units if device.name == source else model.units[1:]
    if any(unit.structure not in profiles for unit in may_get):
        return math.inf, 0
    units = model.units[slice(*span)]
    seconds = device.step_overhead_seconds
    held = device.baseline_bytes + device.workspace_bytes
    users: Counter[tuple[str, int]] = Counter()
    for unit in units:
        profile = profiles[unit.structure]
        seconds += profile.decode[0].time.median_seconds
        held += max(profile.resident_bytes, sum(blob.size_bytes for blob in unit.weights))
        if unit.kind == "block":
            held += model.kv.bytes_per_token() * context * slots
        users.update((blob.digest, blob.size_bytes) for blob in unit.weights)
    held -= sum((count - 1) * size_bytes for (_, size_bytes), count in users.items())
    return seconds, held


def _hops(
    model: ModelManifest, profile: Profile, names: tuple[str, ...]
) -> list[tuple[float, float]]:
    """Time and busy time of each hop: into the source, between stages, and the token back."""
    links = {(link.source, link.target): link for link in profile.links}
    source, last = names[0], names[-1]
    loopback = links.get((source, source))
    own = loopback.latency_seconds if loopback else 0.0
    hops = [(own, 0.0)]
    for pair in itertools.pairwise(names):
        if pair not in links:
            return [(math.inf, math.inf)]
        busy = (model.hidden_size * 4 + 200) / links[pair].bytes_per_second
        hops.append((links[pair].latency_seconds + busy, busy))
    if last == source:
        return [*hops, (own, 0.0)]
    if (last, source) not in links:
        return [(math.inf, math.inf)]
    return [*hops, (links[last, source].latency_seconds, 0.0)]

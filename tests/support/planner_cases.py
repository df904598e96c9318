"""Small models, devices and links for planner tests, by hand and drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from edgeshard.schemas.common import Blob, UnitKind
from edgeshard.schemas.model import KvSpec, ModelManifest, Source, Unit
from edgeshard.schemas.profile import (
    DecodePoint,
    DeviceProfile,
    LinkProfile,
    PrefillPoint,
    Profile,
    Timing,
    UnitProfile,
)

MIB = 2**20
CPU = "CPUExecutionProvider"
GPU = "CUDAExecutionProvider"
TIED = "tied"


def digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def timing(seconds: float) -> Timing:
    return Timing(median_seconds=seconds, low_seconds=seconds, high_seconds=seconds, num_samples=5)


def unit_kind(index: int, num_units: int) -> UnitKind:
    if index == 0:
        return "embedding"
    return "head" if index == num_units - 1 else "block"


def make_model(
    num_blocks: int = 4,
    weights_bytes: int | Sequence[int] = MIB,
    tied_bytes: int = 0,
    structures: Sequence[str] | None = None,
    kv: KvSpec | None = None,
) -> ModelManifest:
    """A model whose units have a blob each; embedding and head share one where `tied_bytes`."""
    num_units = num_blocks + 2
    sizes = [weights_bytes] * num_units if isinstance(weights_bytes, int) else weights_bytes
    units = []
    for index in range(num_units):
        kind = unit_kind(index, num_units)
        blobs = [blob(f"weights.{index}", sizes[index])]
        if tied_bytes and kind != "block":
            blobs.append(blob(TIED, tied_bytes))
        units.append(
            Unit(
                name=f"block.{index - 1}" if kind == "block" else kind,
                kind=kind,
                graph=Blob(digest=digest(f"graph.{index}"), size_bytes=100, suffix=".onnx"),
                weights=tuple(blobs),
                structure=digest(structures[index] if structures else kind),
                num_parameters=1,
            )
        )
    return ModelManifest(
        name="tiny",
        architecture="LlamaForCausalLM",
        target="ort",
        precision="fp32",
        opset=21,
        num_blocks=num_blocks,
        hidden_size=64,
        vocab_size=100,
        max_context=4096,
        kv=kv or KvSpec(layout="static", num_kv_heads=1, head_dim=16),
        units=tuple(units),
        tokenizer=None,
        chat_template=None,
        special_tokens={},
        eos_token_ids=(),
        source=Source(kind="safetensors", digest=digest("checkpoint")),
        activations="float16",  # in which both providers run it
    )


def blob(name: str, size_bytes: int) -> Blob:
    return Blob(digest=digest(name), size_bytes=size_bytes, suffix=".safetensors")


def measured(
    model: ModelManifest,
    decode_seconds: Mapping[str, float] | float,
    provider: str = CPU,
    resident_bytes: int = 0,
) -> tuple[UnitProfile, ...]:
    """A measurement of each structure of the model, flat in context, linear in prompt tokens."""
    found = {}
    for unit in model.units:
        seconds = (
            decode_seconds if isinstance(decode_seconds, float) else decode_seconds[unit.structure]
        )
        found[unit.structure] = UnitProfile(
            structure=unit.structure,
            kind=unit.kind,
            provider=provider,
            target=model.target,
            precision=model.precision,
            decode=(DecodePoint(context=64, batch=1, time=timing(seconds)),),
            prefill=(PrefillPoint(num_tokens=64, past=0, time=timing(8 * seconds)),),
            resident_bytes=resident_bytes,
        )
    return tuple(found.values())


def make_device(
    name: str,
    units: tuple[UnitProfile, ...],
    memory_bytes: int = 1000 * MIB,
    step_overhead_seconds: float = 0.0,
    baseline_bytes: int = 0,
    workspace_bytes: int = 0,
) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        runtime="1.23.0",
        isa="avx2",
        threads=2,
        providers=tuple(dict.fromkeys(unit.provider for unit in units)),
        memory_bytes=memory_bytes,
        baseline_bytes=baseline_bytes,
        workspace_bytes=workspace_bytes,
        step_overhead_seconds=step_overhead_seconds,
        units=units,
    )


def make_link(
    source: str, target: str, latency_seconds: float = 0.001, bytes_per_second: float = 1e6
) -> LinkProfile:
    return LinkProfile(
        source=source,
        target=target,
        latency_seconds=latency_seconds,
        bytes_per_second=bytes_per_second,
        time=timing(latency_seconds),
    )


def make_profile(
    devices: Sequence[DeviceProfile], links: Sequence[LinkProfile] | None = None
) -> Profile:
    """A profile of a model; with no links given, each ordered pair has the usual one."""
    names = [device.name for device in devices]
    if links is None:
        links = [make_link(a, b) for a in names for b in names if a != b]
    return Profile(models=(digest("model"),), devices=tuple(devices), links=tuple(links))


@dataclass(frozen=True)
class Case:
    model: ModelManifest
    profile: Profile
    context: int
    slots: int


@st.composite
def cases(draw: st.DrawFn, tight: bool, plain: bool = False) -> Case:
    """Up to 7 units of different costs, 1 to 4 devices, 1 or 2 providers, some links missing.

    Times are multiples of 1/1024 s, so that ties are common and exact. In a plain case every unit
    has its own weights and every device one provider and no gap in what was measured.
    """

    def number(most: int) -> int:
        return draw(st.integers(0, most))

    num_blocks = 1 + number(4)
    num_units = num_blocks + 2
    model = make_model(
        num_blocks,
        weights_bytes=[number(9) for _ in range(num_units)],
        tied_bytes=0 if plain else number(6),
        structures=[f"structure.{index}" for index in range(num_units)],
        kv=KvSpec(layout="static", num_kv_heads=1, head_dim=1),
    )
    devices = []
    for name in "abcd"[: draw(st.sampled_from((4, 3, 3, 2, 1)))]:
        slowest = draw(st.sampled_from((40, 10, 4)))
        units: list[UnitProfile] = []
        for provider in (CPU, GPU)[: 1 if plain else 1 + number(1)]:
            seconds = {unit.structure: (1 + number(slowest)) / 1024 for unit in model.units}
            units += measured(model, seconds, provider, resident_bytes=number(12))
        if not plain and number(9) == 9:
            del units[number(len(units) - 1)]
        devices.append(
            make_device(
                name,
                tuple(units),
                memory_bytes=20 + number(60) if tight else 10**6,
                step_overhead_seconds=number(3) / 1024,
                baseline_bytes=number(3),
                workspace_bytes=number(3),
            )
        )
    links = [
        make_link(a.name, b.name, number(5) / 1024, 2.0 ** (12 + number(8)))
        for a in devices
        for b in devices
        if number(9) < (5 if a is b else 9)
    ]
    return Case(model, make_profile(devices, links), context=1, slots=1 + number(1))

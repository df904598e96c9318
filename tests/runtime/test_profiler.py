"""A profile of a tiny model: whole, within its schema, and honest about what it sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError
from edgeshard.runtime import profiler
from edgeshard.runtime.points import Others, repeat
from edgeshard.runtime.profiler import Profiler, ProfilerConfig, ProfileSpec
from edgeshard.runtime.providers import ProviderError
from edgeshard.runtime.representative import make_representative
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Device
from edgeshard.schemas.common import Precision, Target
from edgeshard.schemas.profile import DeviceProfile, Profile
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import CPU, CUDA
from support.tiny_llama import CompiledModel, compiled

DEVICE = Device(name="laptop", address="127.0.0.1", port=7000, public_key="k" * 40)
CONTEXTS, BATCHES, PROMPTS = (8, 32), (1, 2), (4, 16)


def _store(model: CompiledModel, folder: Path, *with_weights: str) -> Store:
    """What the agent has: the manifest, all graphs, and the weights of a few units."""
    store = Store(folder)
    wanted = [model.blob, *(unit.graph for unit in model.manifest.units)]
    for unit in model.manifest.units:
        wanted += unit.weights if unit.name in with_weights else ()
    for blob in wanted:
        store.put(model.store.read(blob), blob.suffix)
    return store


def _measure(
    model: CompiledModel,
    store: Store,
    sampled: tuple[str, ...],
    memory_bytes: int = 2**32,
    representatives: tuple[int, ...] = (),
) -> tuple[DeviceProfile, list[str]]:
    structures = [unit.structure for unit in model.manifest.units]
    first = sorted({structures.index(structure) for structure in structures})
    spec = ProfileSpec(
        model=model.blob,
        representatives=representatives or tuple(first),
        sampled=sampled,
        contexts=CONTEXTS,
        batches=BATCHES,
        prompts=PROMPTS,
    )
    config = ProfilerConfig(
        store=str(store.root), device=DEVICE, threads=1, memory_bytes=memory_bytes, spec=spec
    )
    said: list[str] = []
    return Profiler(config, said.append).measure(), said


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "DECODE_SAMPLES", 4)
    monkeypatch.setattr(profiler, "PREFILL_SAMPLES", 3)
    monkeypatch.setattr(profiler, "PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_a_profile_covers_every_structure_and_point(tmp_path: Path, target: Target) -> None:
    model = compiled("grouped", "int4", target)
    store = _store(model, tmp_path, "block.1")

    found, said = _measure(model, store, ("block.1",))

    assert {u.structure for u in found.units} == {u.structure for u in model.manifest.units}
    assert {unit.provider for unit in found.units} == set(found.providers)
    assert "CPUExecutionProvider" in found.providers
    for unit in found.units:
        points = {(point.context, point.batch) for point in unit.decode}
        assert points == {(8, 1), (32, 1), (8, 2)}
        assert {point.num_tokens for point in unit.prefill} == set(PROMPTS)
        times = [point.time for point in unit.decode] + [point.time for point in unit.prefill]
        for time in times:
            assert 0 <= time.low_seconds <= time.median_seconds <= time.high_seconds
        assert unit.rows_alike is not None
    assert found.baseline_bytes > 2**20
    assert len(said) == len(found.units)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_rows_of_one_batch_size_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BATCHES", (1,))
    model = compiled("grouped", "fp32")

    found, _ = _measure(model, _store(model, tmp_path), ())

    assert {unit.rows_alike for unit in found.units} == {None}


def test_a_sampled_unit_checks_its_representative(tmp_path: Path) -> None:
    model = compiled("grouped", "int4")
    store = _store(model, tmp_path, "block.0", "block.2")

    found, _ = _measure(model, store, ("block.0", "block.2"))

    by_kind = {unit.kind: unit for unit in found.units}
    assert by_kind["block"].sampled == ("block.0", "block.2")
    deviation = by_kind["block"].sample_deviation
    assert deviation is not None
    assert 0 <= deviation < 5
    assert by_kind["head"].sampled == ()
    assert by_kind["head"].sample_deviation is None


def test_a_profile_holds_to_its_schema(tmp_path: Path) -> None:
    model = compiled("grouped", "int4")
    device, _ = _measure(model, _store(model, tmp_path), ())

    profile = Profile(models=(model.blob.digest,), devices=(device,), links=())

    data = files.encode(profile)
    jsonschema.validate(json.loads(data), json.loads(files.schema_text(Profile)))
    assert files.decode(data, Profile, "profile") == profile


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many copies each window is made of."""
    counts: list[int] = []

    def counting(*arguments: Any) -> ShardManifest:
        counts.append(arguments[-1])
        return make_representative(*arguments)

    monkeypatch.setattr(profiler, "make_representative", counting)
    return counts


def test_a_small_device_measures_units_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "int4")
    counts = _counted(monkeypatch)

    found, _ = _measure(model, _store(model, tmp_path), (), memory_bytes=1)

    assert set(counts) == {1}
    assert found.step_overhead_seconds == 0


def test_a_large_device_measures_several_blocks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "int4")
    counts = _counted(monkeypatch)

    _measure(model, _store(model, tmp_path), ())

    assert max(counts) == profiler.MAX_WINDOW


def test_the_fixed_part_of_a_step_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "int4")
    counts = _counted(monkeypatch)
    timed: list[int] = []

    def counting(*arguments: Any) -> list[float]:
        timed.append(counts[-1])
        return repeat(*arguments)

    monkeypatch.setattr(profiler, "repeat", counting)
    head = len(model.manifest.units) - 1

    found, _ = _measure(model, _store(model, tmp_path), (), representatives=(head, 1, 2))

    num_providers = len({unit.provider for unit in found.units})
    many = profiler.MAX_WINDOW
    assert counts == [1, many, 1, many, 1] * num_providers  # the last is the head
    assert timed == [1, *[many] * 6, 1, 1] * num_providers


def test_other_units_are_read_before_each_decode_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "int4")
    sizes: list[int] = []
    order: list[str] = []

    class Recorded(Others):
        def __init__(self, num_bytes: int) -> None:
            super().__init__(num_bytes)
            sizes.append(num_bytes)

        def read(self) -> None:
            super().read()
            order.append("others")

    def recorded(step: Callable[[], None], *rest: Any) -> list[float]:
        def noted() -> None:
            step()
            order.append("step")

        return repeat(noted, *rest)

    monkeypatch.setattr(profiler, "Others", Recorded)
    monkeypatch.setattr(profiler, "repeat", recorded)
    counts = _counted(monkeypatch)

    _measure(model, _store(model, tmp_path), (), representatives=(1,))

    unit_bytes = sum(blob.size_bytes for blob in model.manifest.units[1].weights)
    weights = {blob for unit in model.manifest.units for blob in unit.weights}
    whole = sum(blob.size_bytes for blob in weights)
    assert len(sizes) == len(counts)
    assert sizes[0] == whole - unit_bytes > 0
    assert all(size <= whole - unit_bytes for size in sizes)
    assert order == ["others", "step"] * (len(order) // 2) != []


def test_others_take_half_of_what_is_free_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "int4")
    sizes: list[int] = []

    class Recorded(Others):
        def __init__(self, num_bytes: int) -> None:
            super().__init__(num_bytes)
            sizes.append(num_bytes)

    monkeypatch.setattr(profiler, "Others", Recorded)
    monkeypatch.setattr(profiler, "resident_bytes", lambda pid: 10_000)

    _measure(model, _store(model, tmp_path), (), memory_bytes=12_000)

    assert max(sizes) == 1_000


def test_without_a_cache_every_context_takes_the_same(tmp_path: Path) -> None:
    model = compiled("grouped", "int4")

    found, _ = _measure(model, _store(model, tmp_path), ())

    ends = [unit for unit in found.units if unit.kind != "block"]
    assert {unit.kind for unit in ends} == {"embedding", "head"}
    for unit in ends:
        alone = {point.context: point.time for point in unit.decode if point.batch == 1}
        assert alone[CONTEXTS[0]] == alone[CONTEXTS[1]]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(
    ("precision", "words"),
    [("fp16", "does not start"), ("int4", "has no float32 kernels for ort")],
)
def test_a_provider_that_does_not_start_or_has_no_kernels_is_left_out(
    precision: Precision, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", precision)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])

    found, said = _measure(model, _store(model, tmp_path), ())

    assert found.providers == (CPU,)
    assert {unit.provider for unit in found.units} == {CPU}
    assert any(line.startswith(f"nothing on {CUDA}: {CUDA} {words}") for line in said)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_device_where_no_provider_starts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped", "fp16")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])

    with pytest.raises(ProviderError, match="leave it out of `providers`"):
        _measure(model, _store(model, tmp_path), ())


def test_a_corrupt_graph_is_refused(tmp_path: Path) -> None:
    model = compiled("grouped", "int4")
    store = _store(model, tmp_path)
    graph = model.manifest.units[1].graph
    store.path(graph).unlink()

    with pytest.raises(ArtifactError, match=graph.digest):
        _measure(model, store, ())

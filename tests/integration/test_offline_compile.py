"""`esc compile` as a build step: export, plan and fuse from a profile, with no device at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.finished import Compiled
from edgeshard.runtime.keys import make_keys
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster, Device
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import (
    DecodePoint,
    DeviceProfile,
    LinkProfile,
    PrefillPoint,
    Profile,
    Timing,
    UnitProfile,
)
from support.esc import esc, esc_here
from support.tiny_llama import folder as checkpoint

pytestmark = pytest.mark.timeout(180)
PROVIDER = "CPUExecutionProvider"
NAMES = ("left", "right")
TIME = Timing(median_seconds=0.001, low_seconds=0.001, high_seconds=0.001, num_samples=3)


def profile_of(compiled: Compiled, memory_bytes: int) -> Profile:
    manifest = compiled.manifest
    kinds = {unit.structure: unit.kind for unit in manifest.units}
    units = tuple(
        UnitProfile(
            structure=structure,
            kind=kind,
            provider=PROVIDER,
            target=manifest.target,
            precision=manifest.precision,
            decode=(DecodePoint(context=0, batch=1, time=TIME),),
            prefill=(PrefillPoint(num_tokens=16, past=0, time=TIME),),
            resident_bytes=0,
        )
        for structure, kind in kinds.items()
    )
    devices = tuple(
        DeviceProfile(
            name=name,
            runtime="1",
            isa="any",
            threads=1,
            providers=(PROVIDER,),
            memory_bytes=memory_bytes,
            baseline_bytes=0,
            workspace_bytes=0,
            step_overhead_seconds=0,
            units=units,
        )
        for name in NAMES
    )
    links = tuple(
        LinkProfile(source=a, target=b, latency_seconds=0, bytes_per_second=1e9, time=TIME)
        for a, b in (NAMES, NAMES[::-1])
    )
    return Profile(models=(compiled.blob.digest,), devices=devices, links=links)


def write_inputs(folder: Path, share: float) -> Compiled:
    """Devices that hold this share of the model each."""
    compiled = compile_model(checkpoint("grouped"), Store(folder / "first"))
    devices = tuple(
        Device(
            name=name,
            address="127.0.0.1",
            port=7000 + 10 * index,
            public_key=make_keys(folder / "keys", name).public,
        )
        for index, name in enumerate(NAMES)
    )
    files.write(folder / "cluster.json", Cluster(source="left", operators=(), devices=devices))
    blobs = {blob for unit in compiled.manifest.units for blob in unit.weights}
    memory_bytes = int(share * sum(blob.size_bytes for blob in blobs))
    files.write(folder / "profile.json", profile_of(compiled, memory_bytes))
    return compiled


def test_a_profile_is_enough_to_plan_and_fuse(tmp_path: Path) -> None:
    compiled = write_inputs(tmp_path, 0.8)
    outcome = esc(
        *("compile", checkpoint("grouped"), "--out", "second", "--context", "16"),
        *("--cluster", "cluster.json", "--profile", "profile.json"),
        folder=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    assert compiled.blob.digest in outcome.out
    plan = files.read(tmp_path / "plan.json", Plan)
    assert [stage.device for stage in plan.stages] == ["left", "right"]
    for index, stage in enumerate(plan.stages):
        assert f"shard {index} for {stage.device}: " in outcome.out


def test_a_plan_that_cannot_fit_names_device_and_bytes_and_writes_nothing(tmp_path: Path) -> None:
    write_inputs(tmp_path, 0.2)
    outcome = esc_here(
        *("compile", checkpoint("grouped"), "--out", "second", "--context", "16"),
        *("--cluster", "cluster.json", "--profile", "profile.json"),
        folder=tmp_path,
    )
    assert outcome.code == 4
    assert " bytes " in outcome.complaint
    assert "on left" in outcome.complaint or "on right" in outcome.complaint
    assert not (tmp_path / "plan.json").exists()

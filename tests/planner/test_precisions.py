"""Precision as a choice of each stage: every chain there is, the floor, what a plan says."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.costs import build_costs
from edgeshard.planner.partition import best_partition
from edgeshard.planner.plan import make_plan
from edgeshard.planner.precisions import RANKS, allowed
from edgeshard.planner.table import plan_table
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Floor, Objective, Precision, changed
from edgeshard.schemas.model import KvSpec, ModelManifest, Source
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import DecodePoint, Profile
from support.planner_brute_force import best_latency, best_throughput, every_chain
from support.planner_cases import (
    CPU,
    GPU,
    MIB,
    Case,
    blob,
    cases,
    digest,
    make_device,
    make_model,
    make_profile,
    measured,
    timing,
)

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)
FP32 = make_model(weights_bytes=4 * MIB)


def lower(model: ModelManifest, precision: Precision, sizes: list[int]) -> ModelManifest:
    """The model at another precision, its keys and values in half the bytes."""
    units = tuple(
        changed(unit, weights=(blob(f"{precision}.{index}", size),))
        for (index, unit), size in zip(enumerate(model.units), sizes, strict=True)
    )
    kv = changed(model.kv, dtype="float16")
    return changed(model, name=precision, precision=precision, units=units, kv=kv)


INT4 = lower(FP32, "int4", [MIB] * len(FP32.units))


@st.composite
def two_precisions(draw: st.DrawFn) -> tuple[Case, ModelManifest]:
    """A case whose devices have measured, most of them, a second precision with its own times."""
    case = draw(cases(tight=True))
    number = st.integers(0, 40)
    other = lower(case.model, "int4", [draw(number) // 8 for _ in case.model.units])
    devices = []
    for device in case.profile.devices:
        units = device.units
        for provider in device.providers if draw(number) > 4 else ():
            seconds = {unit.structure: (1 + draw(number)) / 1024 for unit in other.units}
            units += measured(other, seconds, provider, resident_bytes=draw(number) // 8)
        devices.append(changed(device, units=units))
    profile = changed(case.profile, devices=tuple(devices))
    return Case(case.model, profile, case.context, case.slots), other


@EXAMPLES
@given(two_precisions(), st.sampled_from(get_args(Objective)))
def test_the_joint_choice_equals_the_best_of_every_chain(
    given_case: tuple[Case, ModelManifest], objective: Objective
) -> None:
    case, other = given_case
    workload = Workload(case.context, case.slots, 1, 0)
    everything = (case.model, case.profile, "a", case.context, case.slots)
    chains = [one for one in every_chain(*everything, others=[other]) if not one.missing_bytes]
    if not chains:
        with pytest.raises(PlanError):
            best_partition(build_costs(case.model, case.profile, "a", workload, [other]), objective)
        return
    best = best_partition(build_costs(case.model, case.profile, "a", workload, [other]), objective)
    if objective == "latency":
        assert best.seconds == pytest.approx(best_latency(chains), rel=1e-9)
    else:
        expected = pytest.approx(best_throughput(chains), rel=1e-8)
        assert (best.seconds, best.token_seconds) == expected
    assert best.bound_seconds == best.seconds


def profile_of(fp32_seconds: float, int4_seconds: float, second_mib: int = 1000) -> Profile:
    """`a` has room for one fp32 unit, `b` for as much as is said."""
    units = measured(FP32, fp32_seconds) + measured(INT4, int4_seconds)
    devices = [
        make_device("a", units, memory_bytes=5 * MIB),
        make_device("b", units, memory_bytes=second_mib * MIB),
    ]
    return make_profile(devices)


def plan_of(profile: Profile) -> Plan:
    others = [(INT4, digest("int4"))]
    return make_plan(FP32, digest("fp32"), profile, "a", "latency", 64, 1, 32, others=others)


@pytest.mark.parametrize(("room", "taken"), [(100, "floats"), (6, "codes")])
def test_keys_and_values_in_int8_are_taken_where_floats_do_not_fit(room: int, taken: str) -> None:
    """Both of one precision; the blocks' graphs differ, and so do their structures."""
    floats = make_model(weights_bytes=MIB // 4)
    codes = changed(
        floats,
        name="codes",
        kv=changed(floats.kv, dtype="int8"),
        units=tuple(
            changed(unit, structure=digest(f"int8 {unit.structure}"))
            if unit.kind == "block"
            else unit
            for unit in floats.units
        ),
    )
    units = measured(floats, 0.01) + measured(codes, 0.02)
    profile = make_profile([make_device("a", units, memory_bytes=room * MIB)])
    slots = 4 * MIB // (floats.kv.bytes_per_token() * 64)  # of floats, 4 MiB for each of 4 blocks

    made = make_plan(
        floats,
        digest("floats"),
        profile,
        "a",
        "latency",
        64,
        slots,
        32,
        others=[(codes, digest("codes"))],
    )

    assert made.model == digest(taken)


def test_each_stage_takes_what_is_fastest_there_and_the_plan_names_it() -> None:
    profile = profile_of(0.01, 0.02)
    slower = changed(profile.devices[0], units=measured(FP32, 0.5) + measured(INT4, 0.1))
    plan = plan_of(changed(profile, devices=(slower, profile.devices[1])))
    assert [(one.device, one.model, one.precision) for one in plan.stages] == [
        ("a", digest("int4"), "int4"),
        ("b", digest("fp32"), "fp32"),
    ]
    assert plan.model == digest("int4")
    assert plan.models == (digest("int4"), digest("fp32"))
    text = plan_table(plan)
    assert "CPU int4" in text
    assert "mixed: stages have weights in int4 and fp32" in text


def test_a_gpu_takes_the_model_in_16_bits_and_a_cpu_the_one_in_float32() -> None:
    """One precision in two types of activations, of which CUDA runs the second alone."""
    wide = changed(
        make_model(structures=[f"float32.{kind}" for kind in "ebbbbh"]),
        name="wide",
        activations="float32",
    )
    units = measured(FP32, 0.02) + measured(wide, 0.01)
    devices = [
        make_device("a", units, memory_bytes=2 * MIB),
        make_device("b", measured(FP32, 0.005, GPU)),
    ]
    others = [(FP32, digest("narrow"))]

    plan = make_plan(
        wide, digest("wide"), make_profile(devices), "a", "latency", 64, 1, 32, others=others
    )

    assert [(stage.provider, stage.model) for stage in plan.stages] == [
        (CPU, digest("wide")),
        (GPU, digest("narrow")),
    ]


def test_a_stage_that_only_fits_at_a_lower_precision_has_it() -> None:
    plan = plan_of(profile_of(0.01, 0.02, second_mib=6))
    assert [one.precision for one in plan.stages] == ["fp32", "int4"]
    assert plan.stages[1].memory.weights_bytes == 5 * MIB


def test_of_equal_times_the_higher_precision_is_taken() -> None:
    plan = plan_of(profile_of(0.01, 0.01))
    assert plan.model == digest("fp32")
    assert [one.precision for one in plan.stages] == [None, None]
    assert "mixed" not in plan_table(plan)


def test_a_plan_that_takes_one_model_alone_is_that_models_plan() -> None:
    plan = plan_of(profile_of(0.02, 0.01))
    assert plan.models == (digest("int4"),) * len(plan.stages)
    assert [one.precision for one in plan.stages] == [None] * len(plan.stages)


def test_a_batch_that_is_known_of_a_precision_without_room_stops_no_plan() -> None:
    """The source holds fp32 nowhere, and only fp32 was measured with 4 sequences a step."""
    batch = DecodePoint(context=64, batch=4, time=timing(0.01))
    fp32 = tuple(changed(one, decode=(*one.decode, batch)) for one in measured(FP32, 0.01))
    device = make_device("a", fp32 + measured(INT4, 0.02), memory_bytes=7 * MIB)
    others = [(INT4, digest("int4"))]
    profile = make_profile([device])
    plan = make_plan(FP32, digest("fp32"), profile, "a", "throughput", 64, 4, 32, others=others)
    assert (plan.model, plan.batch) == (digest("int4"), 1)


@pytest.mark.parametrize(
    ("floor", "kept"),
    [
        (None, ["fp32", "bf16", "int8", "int4", "mixed", "stored"]),
        ("int4", ["fp32", "bf16", "int8", "int4", "mixed", "stored"]),
        ("int8", ["fp32", "bf16", "int8"]),
        ("fp16", ["fp32", "bf16"]),
        ("fp32", ["fp32"]),
    ],
)
def test_a_floor_leaves_what_is_as_precise_best_first(floor: Floor | None, kept: list[str]) -> None:
    names: list[Precision] = ["int4", "mixed", "stored", "int8", "bf16", "fp32"]
    models = [(changed(FP32, precision=name), name) for name in names]
    assert [name for _, name in allowed(models, floor)] == kept
    assert set(RANKS) == set(get_args(Precision))


def test_a_floor_that_nothing_meets_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"precision fp16: int4 \(int4\); compile with"):
        allowed([(INT4, None)], "fp16")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (changed(INT4, source=Source(kind="gguf", digest=digest("x"))), "source differs"),
        (changed(INT4, num_blocks=7), "num_blocks differs .4 and 7."),
        (changed(INT4, hidden_size=65), "hidden_size differs .64 and 65."),
        (changed(INT4, vocab_size=99), "vocab_size differs .100 and 99."),
    ],
)
def test_models_of_two_checkpoints_are_refused(other: ModelManifest, text: str) -> None:
    with pytest.raises(InputError, match=f"int4 is not tiny at another precision: {text}"):
        make_plan(
            FP32,
            digest("m"),
            profile_of(1.0, 1.0),
            "a",
            "latency",
            64,
            1,
            others=[(other, digest("o"))],
        )


def test_keys_and_values_are_those_of_the_stages_model() -> None:
    model = make_model(kv=KvSpec(layout="static", num_kv_heads=1, head_dim=16))
    other = lower(model, "int8", [1] * len(model.units))
    units = measured(model, 1.0) + measured(other, 2.0)
    profile = make_profile([make_device("a", units)])
    costs = build_costs(model, profile, "a", Workload(64, 1, 1, 0), [other])
    assert [sum(one.kv_bytes) for one in costs.models] == [4 * 2 * 16 * 4 * 64, 4 * 2 * 16 * 2 * 64]

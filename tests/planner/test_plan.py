"""The whole plan: its figures add up, its arguments are checked, it is a valid file."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from edgeshard.errors import EdgeShardError, InputError, PlanError
from edgeshard.planner.baselines import Method
from edgeshard.planner.plan import make_plan
from edgeshard.schemas import files
from edgeshard.schemas.common import Objective
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import DecodePoint, Profile
from support.planner_cases import (
    MIB,
    Case,
    cases,
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
    timing,
)

MODEL = make_model()
UNITS = measured(MODEL, 0.010)


def split_profile() -> Profile:
    """Two devices that must share the model: 6 units of 1 MiB, room for 4 on each."""
    devices = [
        make_device(name, UNITS, memory_bytes=4 * MIB + MIB // 2, step_overhead_seconds=0.002)
        for name in "ab"
    ]
    links = [
        make_link("a", "a", 0.0005),
        make_link("a", "b", 0.001, 1e6),
        make_link("b", "a", 0.003, 1e6),
    ]
    return make_profile(devices, links)


def plan_of(profile: Profile, objective: Objective = "latency", **changes: Any) -> Plan:
    arguments: dict[str, Any] = {"context": 256, "slots": 1, "prompt_tokens": 64} | changes
    return make_plan(MODEL, digest("model"), profile, "a", objective, **arguments)


def test_token_seconds_are_the_way_in_the_stages_the_hops_and_the_way_back() -> None:
    plan = plan_of(split_profile())
    frame_seconds = 0.001 + (64 * 4 + 200) / 1e6
    assert [stage.hop_seconds for stage in plan.stages] == pytest.approx([frame_seconds, 0.003])
    assert sum(stage.decode_seconds for stage in plan.stages) == pytest.approx(
        6 * 0.010 + 2 * 0.002
    )
    assert plan.token_seconds == pytest.approx(0.0005 + 0.064 + frame_seconds + 0.003)


def test_the_first_token_waits_for_the_whole_prompt_on_every_stage() -> None:
    plan = plan_of(split_profile())
    hop_seconds = 0.001 + (64 * 64 * 4 + 200) / 1e6
    assert plan.first_token_seconds == pytest.approx(
        0.0005 + 6 * 0.080 + 2 * 0.002 + hop_seconds + 0.003
    )


def test_few_slots_limit_the_rate_and_the_bottleneck_says_so() -> None:
    plan = plan_of(split_profile(), "throughput")
    assert plan.tokens_per_second == pytest.approx(1 / plan.token_seconds)
    assert plan.bottleneck == "stage 0 on a, 32.00 ms per token; 3 slots would fill the chain"


def test_with_slots_enough_the_bottleneck_limits_the_rate() -> None:
    plan = plan_of(split_profile(), "throughput", slots=4)
    assert plan.tokens_per_second == pytest.approx(1 / 0.032)
    assert plan.bottleneck == "stage 0 on a, 32.00 ms per token"


def test_a_slow_link_is_the_bottleneck_by_name() -> None:
    devices = [make_device(name, UNITS, memory_bytes=4 * MIB) for name in "ab"]
    links = [make_link("a", "b", 0.001, 1e3), make_link("b", "a")]
    plan = plan_of(make_profile(devices, links), slots=2)
    assert plan.bottleneck == "link a -> b, 456.00 ms per token"


def test_the_decode_context_is_by_default_the_middle_of_an_answer() -> None:
    points = (
        DecodePoint(context=0, batch=1, time=timing(0.0)),
        DecodePoint(context=1000, batch=1, time=timing(1.0)),
    )
    units = tuple(msgspec.structs.replace(unit, decode=points) for unit in UNITS)
    profile = make_profile([make_device("a", units)])
    by_default = plan_of(profile, context=2000, prompt_tokens=100)
    given_at = plan_of(profile, context=2000, prompt_tokens=100, decode_context=500)
    cut_short = plan_of(profile, context=110, prompt_tokens=100)
    assert by_default.token_seconds == pytest.approx(6 * 0.164)
    assert given_at.token_seconds == pytest.approx(6 * 0.500)
    assert cut_short.token_seconds == pytest.approx(6 * 0.110)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"context": 5000}, "context 5000 is more than the context of tiny, 4096; give at most"),
        ({"context": 0}, "context 0 is too small"),
        ({"slots": 0}, "slots 0 is too small; give at least 1"),
        ({"prompt_tokens": 300}, "prompt tokens 300 is more than the planned context, 256"),
        ({"prompt_tokens": 0}, "prompt tokens 0 is too small"),
        ({"decode_context": 257}, "decode context 257 is more than the planned context, 256"),
        ({"decode_context": -1}, "decode context -1 is too small"),
    ],
)
def test_an_argument_out_of_range_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        plan_of(split_profile(), **changes)


def test_a_profile_of_zero_times_is_refused() -> None:
    profile = make_profile([make_device("a", measured(MODEL, 0.0))])
    with pytest.raises(InputError, match="takes 0 s; run `esc profile` again"):
        plan_of(profile)


def test_what_cannot_fit_names_device_and_bytes() -> None:
    with pytest.raises(PlanError, match=r"lacks \d+ bytes .* on [ab]"):
        plan_of(split_profile(), slots=1000)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(tight=True))
def test_any_plan_is_a_valid_file_whose_devices_are_all_accounted_for(case: Case) -> None:
    try:
        plan = make_plan(
            case.model, digest("m"), case.profile, "a", "latency", case.context, case.slots, 1
        )
    except EdgeShardError:
        return
    assert files.decode(files.encode(plan), Plan, "plan") == plan
    named = [stage.device for stage in plan.stages] + [left.device for left in plan.left_out]
    assert sorted(named) == sorted(device.name for device in case.profile.devices)


def test_the_same_values_give_the_same_bytes() -> None:
    plans = [plan_of(split_profile(), "throughput", slots=2) for _ in range(3)]
    assert len({files.encode(plan) for plan in plans}) == 1


def test_a_baseline_makes_a_plan_of_the_same_kind() -> None:
    plan = two_devices_by("cloud-edge-even")
    assert [(stage.device, stage.start, stage.stop) for stage in plan.stages] == [
        ("a", 0, 3),
        ("b", 3, 6),
    ]
    assert [left.reason for left in plan.left_out] == ["cloud-edge-even does not use it"]


def test_a_baseline_that_comes_back_to_a_device_is_refused() -> None:
    with pytest.raises(PlanError, match="algorithm-1 gives a 2 stages, a device runs one"):
        two_devices_by("algorithm-1")


def two_devices_by(method: Method) -> Plan:
    """`b` is fast at one block alone; `c` is slow at everything."""
    model = make_model(structures=[f"structure.{unit}" for unit in range(6)])
    fast = model.units[2].structure
    speeds = {
        "a": {unit.structure: 9.0 if unit.structure == fast else 1.0 for unit in model.units},
        "b": {unit.structure: 0.1 if unit.structure == fast else 7.0 for unit in model.units},
        "c": {unit.structure: 99.0 for unit in model.units},
    }
    profile = make_profile([make_device(name, measured(model, speeds[name])) for name in speeds])
    return make_plan(model, digest("model"), profile, "a", "latency", 512, 1, method=method)

"""What else counts: prefill beside decode, batches, how hidden states travel."""

from __future__ import annotations

from typing import Any

import pytest

from edgeshard.planner.plan import make_plan
from edgeshard.schemas.common import Objective, changed
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import DecodePoint, PrefillPoint, Profile, UnitProfile
from support.planner_cases import (
    MIB,
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    timing,
)

MODEL = make_model()


def units(decode: float, prefill: float, batch_4: float | None = None) -> tuple[UnitProfile, ...]:
    """Seconds of a unit's decode step, of its prefill of 64 tokens, of a step of 4 sequences."""
    points = [DecodePoint(context=64, batch=1, time=timing(decode))]
    if batch_4 is not None:
        points.append(DecodePoint(context=64, batch=4, time=timing(batch_4)))
    kinds = {unit.structure: unit.kind for unit in MODEL.units}
    return tuple(
        UnitProfile(
            structure=structure,
            kind=kind,
            provider="CPUExecutionProvider",
            target=MODEL.target,
            precision=MODEL.precision,
            decode=tuple(points),
            prefill=(PrefillPoint(num_tokens=64, past=0, time=timing(prefill)),),
            resident_bytes=0,
        )
        for structure, kind in kinds.items()
    )


def plan_of(profile: Profile, objective: Objective = "latency", **wishes: Any) -> Plan:
    wanted: dict[str, Any] = {"context": 512, "slots": 4, "prompt_tokens": 64} | wishes
    return make_plan(MODEL, digest("m"), profile, "a", objective, **wanted)


def decoder_and_prefiller() -> Profile:
    """b decodes faster than a, but is slow at prompts; unit 0 stays on a."""
    devices = [make_device("a", units(0.010, 0.010)), make_device("b", units(0.005, 1.0))]
    return make_profile(devices, [make_link(x, y, 0.0, 1e9) for x in "ab" for y in "ab"])


def test_a_long_answer_goes_where_decoding_is_fast_and_a_short_one_does_not() -> None:
    long, short = (
        plan_of(decoder_and_prefiller(), new_tokens=num_tokens) for num_tokens in (448, 2)
    )
    assert [stage.device for stage in long.stages] == ["a", "b"]
    assert [stage.device for stage in short.stages] == ["a"]


def test_the_objective_is_the_mean_over_the_tokens_of_the_request() -> None:
    plan = plan_of(decoder_and_prefiller(), new_tokens=10)
    assert plan.certificate is not None
    assert plan.certificate.seconds == pytest.approx(plan.request_seconds / 10)
    assert plan.request_seconds == pytest.approx(plan.first_token_seconds + 9 * plan.token_seconds)


def test_throughput_counts_the_prompt_as_work_of_the_slowest_stage() -> None:
    plan = plan_of(decoder_and_prefiller(), "throughput", new_tokens=10)
    assert plan.certificate is not None
    slowest = max(0.9 * s.decode_seconds + 0.1 * s.prefill_seconds for s in plan.stages)
    assert plan.certificate.seconds == pytest.approx(slowest)


def test_the_answer_moves_the_decode_step_that_is_predicted_to_its_middle() -> None:
    points = (
        DecodePoint(context=0, batch=1, time=timing(0.0)),
        DecodePoint(context=1000, batch=1, time=timing(1.0)),
    )
    slow = tuple(changed(unit, decode=points) for unit in units(0.01, 0.01))
    profile = make_profile([make_device("a", slow)])
    assert plan_of(profile, new_tokens=100).token_seconds == pytest.approx(6 * 0.114)


def test_a_batch_takes_what_it_was_measured_to_take() -> None:
    profile = make_profile([make_device("a", units(0.010, 0.080, batch_4=0.020))])
    alone, batched = plan_of(profile, batch=1), plan_of(profile, batch=4)
    assert alone.token_seconds == pytest.approx(6 * 0.010)
    assert batched.token_seconds == pytest.approx(6 * 0.020)
    assert batched.tokens_per_second == pytest.approx(4 / (6 * 0.020))
    assert alone.unsupported == batched.unsupported == ()


def test_smaller_activations_make_hops_shorter() -> None:
    devices = [make_device(name, units(0.01, 0.01), 4 * MIB) for name in "ab"]
    profile = make_profile(devices, [make_link(x, y, 0.0, 1e4) for x in "ab" for y in "ab"])
    hops = {
        kind: plan_of(profile, slots=1, activation=kind).stages[0].hop_seconds
        for kind in ("fp32", "fp16", "int8")
    }
    assert hops["fp32"] == pytest.approx((64 * 4 + 200) / 1e4)
    assert hops["fp16"] == pytest.approx((64 * 2 + 200) / 1e4)
    assert hops["int8"] == pytest.approx((64 + 2 * 4 + 200) / 1e4)

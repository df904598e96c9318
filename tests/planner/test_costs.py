"""The cost table: links, the ways in and back, keys and values, unusable devices."""

from __future__ import annotations

import math

import pytest

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.costs import HEADER_BYTES, CostTable, build_costs
from edgeshard.planner.units import Workload
from edgeshard.schemas.profile import LinkProfile
from support.planner_cases import (
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

WORKLOAD = Workload(context=100, slots=3, prompt_tokens=10, decode_context=64)
MODEL = make_model(2)
UNITS = measured(MODEL, 0.01)


def table(*links: LinkProfile) -> CostTable:
    profile = make_profile([make_device("a", UNITS), make_device("b", UNITS)], links)
    return build_costs(MODEL, profile, "a", WORKLOAD)


def test_a_hop_is_latency_and_bytes_over_rate() -> None:
    costs = table(make_link("a", "b", 0.5, 1000.0), make_link("b", "a", 0.25, 1000.0))
    frame_bytes = MODEL.hidden_size * 4
    assert costs.hop_seconds[0][1] == pytest.approx(0.5 + (frame_bytes + HEADER_BYTES) / 1000)
    assert costs.hop_busy_seconds[0][1] == pytest.approx((frame_bytes + HEADER_BYTES) / 1000)
    assert costs.prefill_hop_seconds[0][1] == pytest.approx(
        0.5 + (10 * frame_bytes + HEADER_BYTES) / 1000
    )


def test_a_token_returns_after_the_latency_of_the_link() -> None:
    costs = table(make_link("a", "b"), make_link("b", "a", 0.25))
    assert costs.return_seconds.tolist() == [0.0, 0.25]
    assert costs.entry_seconds == 0.0


def test_a_measured_loopback_is_the_way_in_and_back_on_the_source() -> None:
    costs = table(make_link("a", "a", 0.125))
    assert costs.entry_seconds == 0.125
    assert costs.return_seconds.tolist() == [0.125, math.inf]


def test_an_unmeasured_link_costs_infinity() -> None:
    costs = table(make_link("a", "b"))
    assert math.isfinite(costs.hop_seconds[0][1])
    assert math.isinf(costs.hop_seconds[1][0])
    assert math.isinf(costs.return_seconds[1])


def test_blocks_keep_keys_and_values_of_all_slots() -> None:
    block_bytes = 2 * 1 * 16 * 4 * 100 * 3
    assert table().models[0].kv_bytes == (0, block_bytes, block_bytes, 0)


def test_a_device_of_another_model_is_left_out_with_the_reason() -> None:
    other = measured(make_model(1, structures=["x", "y", "z"]), 0.01)
    profile = make_profile([make_device("a", UNITS), make_device("b", other)])
    costs = build_costs(MODEL, profile, "a", WORKLOAD)
    assert [device.name for device in costs.devices] == ["a"]
    (left,) = costs.left_out
    assert left.device == "b"
    assert "0 of the 2 unit structures" in left.reason
    assert "esc profile" in left.reason


def test_an_unmeasured_source_is_refused_by_name() -> None:
    profile = make_profile([make_device("a", UNITS[:1]), make_device("b", UNITS)])
    with pytest.raises(PlanError, match=r"^source a: .* run `esc profile`"):
        build_costs(MODEL, profile, "a", WORKLOAD)


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    profile = make_profile([make_device("a", UNITS), make_device("b", UNITS)])
    with pytest.raises(InputError, match="source c is not in the profile, which has a, b"):
        build_costs(MODEL, profile, "c", WORKLOAD)


def test_two_devices_of_one_name_are_refused() -> None:
    profile = make_profile([make_device("a", UNITS), make_device("a", UNITS)])
    with pytest.raises(InputError, match="two devices of one name"):
        build_costs(MODEL, profile, "a", WORKLOAD)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_link_without_a_rate_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"link a -> b has .* bytes per second"):
        table(make_link("a", "b", 0.1, rate))

"""The error where nothing fits: one line with the device, the bytes and the next step."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import assume, given, settings

from edgeshard.errors import PlanError
from edgeshard.planner.costs import build_costs
from edgeshard.planner.partition import best_partition
from edgeshard.planner.units import Workload
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import Profile
from support.planner_brute_force import every_chain
from support.planner_cases import (
    MIB,
    Case,
    cases,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)


def refusal(
    model: ModelManifest, profile: Profile, source: str = "a", context: int = 64, slots: int = 1
) -> str:
    costs = build_costs(model, profile, source, Workload(context, slots, 1, 0))
    with pytest.raises(PlanError) as caught:
        best_partition(costs, "latency")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_source_too_small_for_its_first_unit_is_named() -> None:
    model = make_model()
    units = measured(model, 0.01)
    devices = [make_device("a", units, memory_bytes=MIB - 10), make_device("b", units)]
    text = refusal(model, make_profile(devices))
    assert "source a must hold embedding and lacks 10 bytes" in text
    assert "fewer slots" not in text
    assert "int4" in text


def test_the_device_that_lacks_most_is_named_with_its_bytes() -> None:
    """6 units of 1 MiB and 4 times 0.5 MiB of KV: a holds the first, b has 5 of the 7 left."""
    model = make_model()
    units = measured(model, 0.01)
    devices = [
        make_device("a", units, memory_bytes=MIB),
        make_device("b", units, memory_bytes=5 * MIB),
    ]
    text = refusal(model, make_profile(devices), context=4096)
    assert "context 4096 x 1 slots" in text
    assert "the closest, over a, b, lacks 2097152 bytes (2.0 MiB) on b" in text
    assert "weights 5.0 + KV 2.0 + runtime 0.0 = 7.0 of at most 5.0 MiB" in text
    assert "a smaller context or fewer slots" in text
    assert "add a device" in text


def test_int4_is_not_proposed_for_an_int4_model() -> None:
    model = msgspec.structs.replace(make_model(), precision="int4")
    profile = make_profile([make_device("a", measured(model, 0.01), memory_bytes=MIB)])
    assert "int4" not in refusal(model, profile)


def test_devices_that_cannot_take_part_are_listed() -> None:
    model = make_model()
    units = measured(model, 0.01)
    devices = [make_device("a", units, memory_bytes=MIB), make_device("b", units[:1])]
    text = refusal(model, make_profile(devices))
    assert "b cannot take part: its profile has decode and prefill of 0 of the 2" in text


def test_a_device_without_a_link_does_not_help() -> None:
    model = make_model()
    units = measured(model, 0.01)
    devices = [make_device("a", units, memory_bytes=4 * MIB), make_device("b", units)]
    text = refusal(model, make_profile(devices, [make_link("a", "b")]))
    assert "the closest, over a, lacks" in text


def test_of_many_devices_the_closest_is_named() -> None:
    model = make_model()
    units = measured(model, 0.01)
    devices = [make_device("a", units, memory_bytes=MIB)]
    devices += [make_device(f"small{index}", units, memory_bytes=1 + index) for index in range(28)]
    assert "over a, small27" in refusal(model, make_profile(devices))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(tight=True))
def test_no_chain_lacks_fewer_bytes_than_the_closest(case: Case) -> None:
    chains = list(every_chain(case.model, case.profile, "a", case.context, case.slots))
    assume(chains)
    least = min(chain.missing_bytes for chain in chains)
    assume(least > 0)
    text = refusal(case.model, case.profile, "a", case.context, case.slots)
    if "must hold embedding" in text:
        return
    total = re.search(r"(\d+) bytes \([\d.]+ MiB\) in all", text)
    only = re.search(r"lacks (\d+) bytes", text)
    found = total or only
    assert found is not None
    assert int(found[1]) == least

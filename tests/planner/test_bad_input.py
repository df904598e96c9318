"""Profiles, manifests and wishes that cannot be planned for: one line, the value, a way out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from edgeshard.errors import EdgeShardError, InputError, PlanError
from edgeshard.planner.plan import make_plan
from edgeshard.schemas import files
from edgeshard.schemas.common import changed
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile
from support.planner_cases import (
    MIB,
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)

MODEL = make_model(4)
UNITS = measured(MODEL, 0.010)
ROOMY = 100 * MIB
SMALL = 3 * MIB


def profile_of(memory_bytes: int = ROOMY, links: str = "ab ba", names: str = "ab") -> Profile:
    devices = [make_device(name, UNITS, memory_bytes) for name in names]
    return make_profile(devices, [make_link(pair[0], pair[1]) for pair in links.split()])


def plan_of(profile: Profile, **wishes: Any) -> Plan:
    wanted: dict[str, Any] = {"context": 256, "slots": 1, "prompt_tokens": 64} | wishes
    source = wanted.pop("source", "a")
    objective = wanted.pop("objective", "latency")
    return make_plan(MODEL, digest("m"), profile, source, objective, **wanted)


UNPLANNABLE: dict[str, tuple[Profile, dict[str, Any], type[EdgeShardError], str]] = {
    "no link at all": (profile_of(SMALL, ""), {}, PlanError, "lacks"),
    "no link back": (profile_of(SMALL, "ab"), {}, PlanError, "lacks"),
    "no link onward": (profile_of(SMALL, "ba"), {}, PlanError, "lacks"),
    "an island of two": (profile_of(SMALL, "bc cb", "abc"), {}, PlanError, "lacks"),
    "links among strangers": (profile_of(SMALL, "xy yx"), {}, PlanError, "lacks"),
    "fits nowhere": (profile_of(MIB + 1), {}, PlanError, r"lacks \d+ bytes .* on [ab]"),
    "source too small": (profile_of(1), {}, PlanError, "source a must hold embedding and lacks"),
    "too many slots": (profile_of(8 * MIB), {"slots": 500}, PlanError, "fewer slots"),
    "fits nowhere, throughput": (
        profile_of(MIB + 1),
        {"objective": "throughput"},
        PlanError,
        r"lacks \d+ bytes",
    ),
    "unknown source": (profile_of(), {"source": "z"}, InputError, "source z is not in the profile"),
    "no devices": (make_profile([]), {}, InputError, "which has none"),
    "two of a name": (profile_of(names="aa"), {}, InputError, "two devices of one name"),
    "unmeasured source": (
        make_profile([make_device("a", UNITS[:1]), make_device("b", UNITS)]),
        {},
        PlanError,
        "source a: its profile has decode and prefill of 1 of the 3",
    ),
    "another model's times": (
        make_profile([make_device("a", measured(make_model(1, structures=list("xyz")), 0.1))]),
        {},
        PlanError,
        "0 of the 3 unit structures",
    ),
    "another precision": (
        make_profile([make_device("a", tuple(changed(u, precision="int4") for u in UNITS))]),
        {},
        PlanError,
        "precision fp32",
    ),
    "a head measured as a block": (
        make_profile([make_device("a", tuple(changed(u, kind="block") for u in UNITS))]),
        {},
        InputError,
        "measured structure sha256:.* as block, the manifest has it as embedding",
    ),
    "no time at all": (
        make_profile([make_device("a", measured(MODEL, 0.0))]),
        {},
        InputError,
        "every stage takes 0 s",
    ),
    "no decode points": (
        make_profile([make_device("a", tuple(changed(u, decode=()) for u in UNITS))]),
        {},
        PlanError,
        "0 of the 3",
    ),
    "no batch measured": (profile_of(), {"slots": 4, "batch": 4}, PlanError, "0 of the 3"),
    "context beyond the model": (profile_of(), {"context": 9999}, InputError, "give at most 4096"),
    "prompt beyond the context": (profile_of(), {"prompt_tokens": 257}, InputError, "at most 256"),
    "answer beyond the context": (profile_of(), {"new_tokens": 193}, InputError, "at most 192"),
    "batch beyond the slots": (profile_of(), {"batch": 2}, InputError, "more than the slots, 1"),
    "negative new tokens": (profile_of(), {"new_tokens": -1}, InputError, "at least 0"),
}


@pytest.mark.parametrize("case", UNPLANNABLE)
def test_what_cannot_be_planned_is_refused_in_one_line(case: str) -> None:
    profile, wishes, kind, text = UNPLANNABLE[case]
    with pytest.raises(kind, match=text) as caught:
        plan_of(profile, **wishes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_link_without_bandwidth_is_refused_by_name(rate: float) -> None:
    devices = [make_device(name, UNITS) for name in "ab"]
    profile = make_profile(devices, [make_link("a", "b", 0.1, rate)])
    with pytest.raises(InputError, match=r"link a -> b has .* more than 0 are needed"):
        plan_of(profile)


def _edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    plain = json.loads(files.encode(profile_of()))
    edit(plain)
    return json.dumps(plain).encode()


VIOLATIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative time": (
        lambda p: p["devices"][0]["units"][0]["decode"][0]["time"].update(median_seconds=-1),
        r"devices\[0\].units\[0\].decode\[0\].time.median_seconds: -1 is less than",
    ),
    "missing time": (
        lambda p: p["devices"][1]["units"][2]["prefill"][0].pop("time"),
        r"devices\[1\].units\[2\].prefill\[0\]: 'time' is a required property",
    ),
    "negative latency": (
        lambda p: p["links"][0].update(latency_seconds=-0.1),
        r"links\[0\].latency_seconds: -0.1 is less than",
    ),
    "no memory": (
        lambda p: p["devices"][0].update(memory_bytes=0),
        r"devices\[0\].memory_bytes: 0 is less than",
    ),
    "memory in words": (
        lambda p: p["devices"][0].update(memory_bytes="much"),
        r"devices\[0\].memory_bytes: 'much' is not of type",
    ),
    "a name that is a path": (
        lambda p: p["devices"][0].update(name="../a"),
        r"devices\[0\].name: '../a' does not match",
    ),
    "no links": (lambda p: p.pop("links"), "the file: 'links' is a required property"),
    "links that are no list": (lambda p: p.update(links={}), "links: {} is not of type"),
    "unknown unit kind": (
        lambda p: p["devices"][0]["units"][0].update(kind="tail"),
        r"devices\[0\].units\[0\].kind: 'tail' is not one of",
    ),
    "a later version": (lambda p: p.update(format="edgeshard.profile/2"), "edgeshard.profile/2"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_profile_that_breaks_its_schema_is_refused_with_the_place(case: str) -> None:
    edit, text = VIOLATIONS[case]
    with pytest.raises(InputError, match=text):
        files.decode(_edited(edit), Profile, "profile.json")


def test_a_plan_of_before_certificates_still_loads() -> None:
    plain = json.loads(files.encode(plan_of(profile_of())))
    for later in ("certificate", "new_tokens", "batch", "activation", "unsupported"):
        del plain[later]
    old = files.decode(json.dumps(plain).encode(), Plan, "plan.json")
    assert old.certificate is None
    assert old.unsupported == ()

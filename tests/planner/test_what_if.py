"""Changes of a profile by a word."""

from __future__ import annotations

import pytest

from edgeshard.errors import InputError
from edgeshard.planner.what_if import what_if
from edgeshard.schemas.profile import Profile
from support.planner_cases import MIB, make_device, make_link, make_model, make_profile, measured

MODEL = make_model()


def profile() -> Profile:
    names = ("a", "b-1", "c")
    devices = [make_device(name, measured(MODEL, 0.01)) for name in names]
    return make_profile(devices, [make_link(x, y) for x in names for y in names if x != y])


def rates(changed: Profile) -> dict[tuple[str, str], float]:
    return {(link.source, link.target): link.bytes_per_second for link in changed.links}


def test_a_link_gets_another_rate_both_ways_and_no_other_does() -> None:
    found = rates(what_if(profile(), ["link:a-b-1=10mbps"]))
    assert found["a", "b-1"] == found["b-1", "a"] == 1.25e6
    assert found["a", "c"] == 1e6


def test_a_link_can_be_gone() -> None:
    assert ("a", "c") not in rates(what_if(profile(), ["link:c-a=gone"]))
    assert ("a", "b-1") in rates(what_if(profile(), ["link:c-a=gone"]))


def test_a_device_that_is_gone_takes_its_links_along() -> None:
    changed = what_if(profile(), ["device:b-1=gone"])
    assert [device.name for device in changed.devices] == ["a", "c"]
    assert set(rates(changed)) == {("a", "c"), ("c", "a")}


def test_a_device_gets_other_memory() -> None:
    changed = what_if(profile(), ["device:c=512mib", "device:a=1.5gib"])
    assert [d.memory_bytes for d in changed.devices] == [1536 * MIB, 1000 * MIB, 512 * MIB]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("bandwidth=3", "is not understood; give link:A-B=10mbps"),
        ("link:a-x=10mbps", "no link a-x was measured"),
        ("device:x=gone", "no device x; there are a, b-1, c"),
        ("link:a-c=0mbps", "'0mbps' is no amount above 0 in kbps, mbps, gbps"),
        ("link:a-c=-1mbps", "is no amount above 0"),
        ("link:a-c=10parsec", "is no amount above 0"),
        ("device:a=lots", "'lots' is no amount above 0 in mib, gib"),
        ("device:a=10mbps", "is no amount above 0 in mib, gib"),
        ("device:=gone", "is not understood"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_way_to_say_it(change: str, text: str) -> None:
    with pytest.raises(InputError, match=r"^what-if") as caught:
        what_if(profile(), [change])
    assert text in str(caught.value)

"""Change a profile by a word: what would the plan be, were a link slower or a device gone?

link:a-b=10mbps   both ways; also gbps, kbps        link:a-b=gone
device:a=gone                                       device:a=512mib   also gib
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeshard.errors import InputError
from edgeshard.schemas.common import changed
from edgeshard.schemas.profile import LinkProfile, Profile

BITS = {"kbps": 1e3, "mbps": 1e6, "gbps": 1e9}
BYTES = {"mib": 2**20, "gib": 2**30}
GONE = "gone"
SYNTAX = "give link:A-B=10mbps, link:A-B=gone, device:A=gone or device:A=512mib"


def what_if(profile: Profile, changes: Sequence[str]) -> Profile:
    """The profile after the changes, one after the other.

    Raises:
        InputError: a change is not understood, or names what the profile does not have.
    """
    for change in changes:
        found = re.fullmatch(r"(link|device):(.+)=([^=]+)", change)
        if not found:
            raise InputError(f"what-if {change!r} is not understood; {SYNTAX}")
        kind, name, value = found[1], found[2], found[3].strip().lower()
        edit = _change_link if kind == "link" else _change_device
        profile = edit(profile, change, name, value)
    return profile


def _change_device(profile: Profile, change: str, name: str, value: str) -> Profile:
    names = [device.name for device in profile.devices]
    if name not in names:
        raise InputError(f"what-if {change!r}: no device {name}; there are {', '.join(names)}")
    if value == GONE:
        return changed(
            profile,
            devices=tuple(device for device in profile.devices if device.name != name),
            links=tuple(link for link in profile.links if name not in (link.source, link.target)),
        )
    limit = max(1, int(_amount(change, value, BYTES)))
    devices = tuple(
        changed(device, memory_bytes=limit) if device.name == name else device
        for device in profile.devices
    )
    return changed(profile, devices=devices)


def _change_link(profile: Profile, change: str, name: str, value: str) -> Profile:
    ends = {
        frozenset((name[:cut], name[cut + 1 :])) for cut, letter in enumerate(name) if letter == "-"
    }
    hit = [link for link in profile.links if frozenset((link.source, link.target)) in ends]
    if not hit:
        raise InputError(f"what-if {change!r}: no link {name} was measured; {SYNTAX}")
    if value == GONE:
        return changed(profile, links=tuple(link for link in profile.links if link not in hit))
    rate = _amount(change, value, BITS) / 8

    def edited(link: LinkProfile) -> LinkProfile:
        return changed(link, bytes_per_second=rate) if link in hit else link

    return changed(profile, links=tuple(edited(link) for link in profile.links))


def _amount(change: str, value: str, units: dict[str, float] | dict[str, int]) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", value)
    if not found or found[2] not in units or not float(found[1]) > 0:
        known = ", ".join(units)
        raise InputError(f"what-if {change!r}: {value!r} is no amount above 0 in {known}; {SYNTAX}")
    return float(found[1]) * units[found[2]]

"""Lanes of a Chrome trace."""

from __future__ import annotations

import json
from typing import Any

from edgeshard.chrome_trace import Slice, chrome_trace


def shown(*slices: Slice) -> list[tuple[str, float, float]]:
    """What each lane shows: its name, start and length in microseconds."""
    lanes = list(dict.fromkeys(one.lane for one in slices))
    events: list[dict[str, Any]] = json.loads(json.dumps(chrome_trace(lanes, slices)))[
        "traceEvents"
    ]
    names = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    return [(names[one["tid"]], one["ts"], one["dur"]) for one in events if one["ph"] == "X"]


def test_times_are_microseconds_in_their_lanes() -> None:
    assert shown(Slice("a", "x", "k", 0.0, 0.5), Slice("b", "y", "k", 0.25, 1.0)) == [
        ("a", 0.0, 5e5),
        ("b", 2.5e5, 7.5e5),
    ]


def test_what_overlaps_gets_a_lane_of_its_own() -> None:
    slices = [Slice("a", "x", "k", start, start + 2.0) for start in (0.0, 1.0, 2.0)]
    assert [lane for lane, *_ in shown(*slices)] == ["a", "a (2)", "a"]


def test_lanes_are_sorted_as_they_were_given() -> None:
    trace = chrome_trace(["b", "a"], [])
    events: list[dict[str, Any]] = json.loads(json.dumps(trace))["traceEvents"]
    order = {one["tid"]: one["args"]["sort_index"] for one in events if "sort" in one["name"]}
    named = {one["args"]["name"]: one["tid"] for one in events if one["name"] == "thread_name"}
    assert order[named["b"]] < order[named["a"]]

"""The timeline: every busy time is in it, where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeshard.errors import InputError
from edgeshard.simulate import chrome_trace, draw
from support.simulated_chain import make_chain, run_chain

RUN = run_chain(make_chain([1.0, 2.0], 0.5), num_requests=2, new_tokens=3)


def test_the_trace_has_every_busy_time_in_microseconds() -> None:
    trace = json.loads(json.dumps(chrome_trace(RUN)))
    named = [one for one in trace["traceEvents"] if one["name"] == "thread_name"]
    names = {one["tid"]: one["args"]["name"] for one in named}
    events = [one for one in trace["traceEvents"] if one["ph"] == "X"]
    found = [(names[one["tid"]], one["ts"], one["dur"], one["args"]["request"]) for one in events]
    expected = [
        (one.where, one.start * 1e6, (one.stop - one.start) * 1e6, one.request) for one in RUN.busy
    ]
    assert sorted(found) == sorted(expected)
    assert len(found) == 2 * 3 * 3


def test_one_lane_of_the_trace_never_holds_two_things() -> None:
    by_place: dict[str, list[tuple[float, float]]] = {}
    for one in RUN.busy:
        by_place.setdefault(one.where, []).append((one.start, one.stop))
    for times in by_place.values():
        assert all(
            left[1] <= right[0]
            for left, right in zip(sorted(times), sorted(times)[1:], strict=False)
        )


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"timeline{suffix}"
    draw(RUN, path)
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(path).getroot().get("viewBox")


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends with none of \.svg, \.png"):
        draw(RUN, tmp_path / "timeline.bmp")


def test_a_time_in_which_nothing_happens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing happens"):
        draw(RUN, tmp_path / "timeline.svg", start=1e6, stop=2e6)

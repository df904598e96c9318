"""`esc simulate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeshard.planner.plan import make_plan
from edgeshard.schemas import files
from support.esc import esc
from support.planner_cases import (
    MIB,
    digest,
    make_device,
    make_link,
    make_model,
    make_profile,
    measured,
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    model = make_model()
    units = measured(model, 0.010)
    devices = [make_device(name, units, memory_bytes=4 * MIB) for name in "ab"]
    profile = make_profile(devices, [make_link("a", "b"), make_link("b", "a")])
    made = make_plan(model, digest("m"), profile, "a", "throughput", 256, 4, prompt_tokens=8)
    files.write(tmp_path / "plan.json", made)
    return tmp_path / "plan.json"


def test_figures_timeline_and_picture_come_out(plan: Path, tmp_path: Path) -> None:
    trace, picture = tmp_path / "trace.json", tmp_path / "timeline.svg"
    words = ("--requests", "4", "--new-tokens", "40", "--trace", trace, "--picture", picture)
    done = esc("simulate", plan, *words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["num_tokens"] == 160
    assert found["steady_tokens_per_second"] == pytest.approx(1 / 0.030)
    assert len(json.loads(trace.read_text())["traceEvents"]) > 160
    assert picture.read_text().startswith("<?xml")


def test_a_person_reads_planned_beside_simulated(plan: Path) -> None:
    done = esc("simulate", plan)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("1 requests, 64 tokens in ")
    assert any(line.startswith("busy ") and line.endswith("  a -> b") for line in lines)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--transfers", "magic"), "--transfers 'magic' is unknown; known: overlapped, blocking"),
        (("--shared", "all"), "--shared 'all' is unknown; known: none, device, medium"),
        (("--rate", "0"), "--rate 0.0 is not above 0"),
        (("--prompt-tokens", "999"), "the context holds 256"),
        (("--picture", "x.bmp"), "x.bmp ends with none of .svg, .png"),
    ],
)
def test_bad_words_are_one_line(plan: Path, words: tuple[str, ...], complaint: str) -> None:
    done = esc("simulate", plan, *words)
    assert done.code == 2
    assert complaint in done.complaint

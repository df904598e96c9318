"""What `esc plan` says: explanation, page, JSON, what-if."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeshard.errors import InputError
from edgeshard.plan_report import Report, what_if_json, what_if_text
from edgeshard.planner.batches import CostTables
from edgeshard.planner.explain import explain
from edgeshard.planner.plan import costs_of, make_plan
from edgeshard.planner.what_if import what_if
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

MODEL = make_model(6)


def profile() -> Profile:
    names = ("near", "far", "<odd>")
    devices = [make_device(name, measured(MODEL, 0.01), memory_bytes=5 * MIB) for name in names]
    return make_profile(devices, [make_link(a, b) for a in names for b in names if a != b])


def plan(of: Profile) -> Plan:
    return make_plan(MODEL, digest("m"), of, "near", "throughput", 256, 2, 64, new_tokens=32)


def report() -> Report:
    made = plan(profile())
    tables = CostTables(lambda rows: costs_of(profile(), changed(made, batch=rows), MODEL))
    return Report(made, profile(), tables, plan)


def test_the_explanation_adds_up() -> None:
    made = plan(profile())
    explained = explain(made, profile(), plan)
    for account, stage in zip(explained.stages, made.stages, strict=True):
        assert account.free_bytes == stage.memory.limit_bytes - stage.memory.total_bytes >= 0
        assert account.slack_seconds >= 0
    assert min(account.slack_seconds for account in explained.stages) == 0
    assert explained.stages[-1].target == "near"


def test_more_memory_or_bandwidth_never_makes_the_slowest_stage_slower() -> None:
    made = plan(profile())
    assert made.certificate is not None
    better = plan(what_if(profile(), ["device:near=1gib", "link:near-far=1gbps"]))
    assert better.certificate is not None
    assert better.certificate.seconds <= made.certificate.seconds


def test_the_text_names_every_part_that_was_asked_for() -> None:
    text = report().text(True, True, True)
    for part in (
        "ms of slack",
        "bottleneck:",
        "1 GiB more on",
        "devices  ms per token",
        "1 chain:",
    ):
        assert part in text
    assert "slack" not in report().text(False, False, False)


def test_the_json_holds_the_plan_and_what_was_asked_for() -> None:
    value = json.loads(report().json(True, True, True))
    assert set(value) == {"plan", "explanation", "front", "replicas"}
    assert value["plan"]["format"] == "edgeshard.plan/1"
    assert set(json.loads(report().json(False, False, False))) == {"plan"}


def test_what_if_shows_both_plans() -> None:
    before, after = plan(profile()), plan(what_if(profile(), ["link:near-far=gone"]))
    assert "as it is:" in what_if_text(before, after)
    assert set(json.loads(what_if_json(before, after))) == {"as_it_is", "what_if"}


class Tags(HTMLParser):
    """Refuses what is left open or closed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    report().write_page(page, "tiny & small")
    text = page.read_text("utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not re.search(r"(src|href)=|@import|url\(|<script", text)
    assert "tiny &amp; small" in text
    assert "&lt;odd&gt;" in text
    assert "<odd>" not in text


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        report().write_page(tmp_path / "no" / "plan.html", "tiny")

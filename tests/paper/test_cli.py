"""`esc reproduce-paper` as a person runs it, with the quick studies."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

from support.esc import esc


def test_tables_files_and_pictures_come_out(tmp_path: Path) -> None:
    words = ("--study", "source", "--study", "fleets", "--model", "llama2-7b", "--fleets", "5")
    done = esc("reproduce-paper", "--out", tmp_path / "out", *words)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    suffixes = ("md", "csv", "svg")
    assert names == {f"{name}.{end}" for name in ("source", "fleets") for end in suffixes}
    with (tmp_path / "out" / "source.csv").open() as file:
        rows = list(csv.DictReader(file))
    exact = [
        row for row in rows if row["method"] == "exact" and "agx-orin, batch 4" in row["setting"]
    ]
    assert [row["ours"] for row in exact] == ["72.6715"]
    for name in ("source", "fleets"):
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
    assert "| source | llama2-7b | source agx-orin, batch 4 | exact | ms/token | 72.67 |" in (
        tmp_path / "out" / "source.md"
    ).read_text("utf-8")


def test_an_unknown_study_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = esc("reproduce-paper", "--out", tmp_path / "out", "--study", "magic")
    assert done.code == 2
    assert "--study 'magic' is unknown; known: main, " in done.complaint
    assert not (tmp_path / "out").exists()

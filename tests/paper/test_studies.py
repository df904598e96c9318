"""The studies' figures where a person can work them out, on parts of the testbed."""

from __future__ import annotations

import pytest

from edgeshard.paper.calibrate import factor_of
from edgeshard.paper.cells import Cell, comma_separated, markdown, reported
from edgeshard.paper.methods import choose, token_milliseconds, tokens_per_second
from edgeshard.paper.studies import BATCH, STUDIES
from edgeshard.paper.testbed import Setting, cost_table, unit_seconds
from edgeshard.planner.predict import latency_seconds

SMALL = Setting(kinds=("agx-orin", "agx-orin", "rtx-3090"))


def test_the_exact_latency_plan_of_the_trace_takes_72_7_ms() -> None:
    """Five units at home and on a relay, 29 in the cloud, two hops and the way back."""
    costs = cost_table(SMALL)
    spans = choose(costs, "exact", "latency")
    assert spans is not None
    assert [(span.start, span.stop) for span in spans][-1] == (5, 34)
    agx, cloud = (unit_seconds("llama2-7b", kind, 1.0) for kind in ("agx-orin", "rtx-3090"))
    hop = BATCH * 4096 * 4 * 8 / 50e6 + 0.0021
    way_back = BATCH * 4 * 8 / 1e6 + 0.0021
    by_hand = sum(agx[:5]) + hop + hop + sum(cloud[5:]) + way_back
    assert token_milliseconds(costs, spans) == pytest.approx(by_hand * 1e3)
    assert by_hand * 1e3 == pytest.approx(72.67, abs=0.01)


def test_algorithm_1_runs_the_cloud_full_and_comes_back() -> None:
    """Its labels fill the RTX 3090, then it needs a third hop: the flaw, on the paper's testbed."""
    costs = cost_table(SMALL)
    spans = choose(costs, "edgeshard", "latency")
    assert spans is not None
    assert [span.device for span in spans] == [0, 1, 3, 1]
    assert token_milliseconds(costs, spans) == pytest.approx(84.04, abs=0.01)


def test_one_device_gives_a_batch_in_the_time_of_the_trace() -> None:
    costs = cost_table(SMALL)
    spans = choose(costs, "edge-solo", "throughput")
    assert spans is not None
    rate = tokens_per_second(costs, spans, BATCH, 3)
    assert rate == pytest.approx(BATCH / sum(unit_seconds("llama2-7b", "agx-orin", 1.0)))


def test_what_does_not_fit_is_no_plan() -> None:
    costs = cost_table(Setting(model="llama2-70b", kinds=("rtx-3090",)))
    assert choose(costs, "cloud-edge-opt", "latency") is None


def test_a_calibrated_model_takes_what_the_paper_reports() -> None:
    kinds = SMALL.kinds
    factor = factor_of("llama2-13b", kinds)
    costs = cost_table(Setting(model="llama2-13b", factor=factor, kinds=kinds))
    spans = choose(costs, "exact", "latency")
    assert spans is not None
    assert latency_seconds(costs, spans) * 1e3 == pytest.approx(173.43, abs=0.01)
    assert factor_of("llama2-7b") == 1.0


def test_the_source_study_names_both_sources_and_no_figure_of_the_paper() -> None:
    cells = list(STUDIES["source"]({"llama2-7b": 1.0}))
    assert {cell.setting.split(",")[0] for cell in cells} == {
        "source agx-orin",
        "source orin-nx",
    }
    assert all(cell.paper is None for cell in cells)
    solo = [cell.ours for cell in cells if cell.method == "edge-solo"]
    assert solo[2:] == [None, None]  # the model does not fit an Orin NX


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        ("llama2-7b", "edgeshard", (75.88, "sourced")),
        ("llama2-7b", "cloud-edge-even", (227.35, "recalled")),
        ("llama2-70b", "edge-solo", (None, "out of memory, sourced")),
        ("llama2-7b", "edgeshard-even", (None, "none found")),
    ],
)
def test_the_papers_figure_comes_with_how_it_is_known(
    model: str, method: str, expected: tuple[float | None, str]
) -> None:
    assert reported("latency_ms_per_token", model, method) == expected


def cell(ours: float | None, paper: float | None, *, is_anchor: bool = False) -> Cell:
    return Cell(
        study="s",
        model="m",
        setting="x",
        method="y",
        figure="ms",
        ours=ours,
        paper=paper,
        confidence="recalled",
        is_anchor=is_anchor,
    )


def test_the_error_is_relative_to_the_paper() -> None:
    assert cell(110.0, 100.0).error == pytest.approx(0.1)
    assert cell(None, 100.0).error is None
    assert cell(110.0, None).error is None


def test_a_table_says_what_does_not_fit_and_what_was_calibrated() -> None:
    text = markdown([cell(None, 100.0), cell(100.0, 100.0, is_anchor=True)])
    assert text.splitlines()[2:] == [
        "| s | m | x | y | ms | does not fit | 100.00 |  | recalled |",
        "| s | m | x | y | ms | 100.00 | 100.00 | +0.0% (calibrated) | recalled |",
    ]


def test_a_file_has_full_figures_and_blanks() -> None:
    assert comma_separated([cell(1.23456789, None)]).splitlines() == [
        "study,model,setting,method,figure,ours,paper,error,paper is,calibrated",
        "s,m,x,y,ms,1.23457,,,recalled,",
    ]

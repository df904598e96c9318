"""The paper's comparisons: main table, bandwidth, source node, bubbles. Lists of cells, no files.

Whatever the paper does not say is one assumption for all cells: batches of 4 sequences, as in the
trace, travel together, and `IN_FLIGHT` such batches make the throughput runs of the main table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from edgeshard.paper.calibrate import ANCHOR
from edgeshard.paper.cells import Cell, reported
from edgeshard.paper.methods import (
    LATENCY_ROWS,
    ROWS,
    Row,
    planned,
    token_milliseconds,
    tokens_per_second,
)
from edgeshard.paper.testbed import TRACED, Kind, Model, Setting, testbed

Factors = Mapping[Model, float]
LATENCY, THROUGHPUT = "latency_ms_per_token", "throughput_tokens_per_s"
BATCH = 4
IN_FLIGHT = 1
"""Batches in flight: what the paper reports of EdgeShard, throughput times latency, is about 4
sequences (7B 3.98, 70B 3.86)."""
IN_FLIGHT_TRIED = (1, 2, 4, 8)
IN_FLIGHT_SWEPT = 4
"""Batches in flight of the bandwidth sweep: a pipeline that has something to overlap."""
SWEPT: tuple[Row, ...] = (
    "edge-solo",
    "cloud-edge-even",
    "cloud-edge-opt",
    "cloud-edge-opt-relay",
    "edgeshard",
    "exact",
)
BUBBLED: tuple[Row, ...] = ("cloud-edge-opt", "edgeshard", "exact-latency-plan")
SOURCES: tuple[Kind, ...] = ("agx-orin", "orin-nx")


def in_flight_words(number: int) -> str:
    """The setting of a throughput run."""
    return f"{number} batch{'es' if number > 1 else ''} of {BATCH}"


def main_table(factors: Factors) -> Iterator[Cell]:
    """Methods by models: latency of a batch of 4 and of 1, throughput with batches in flight."""
    for model in factors:
        setting = Setting(model=model, factor=factors[model])
        for batch in (BATCH, 1):
            yield from _latencies(
                "main", replace(setting, batch=batch), f"batch {batch}", LATENCY_ROWS
            )
        yield from _rates("main", setting, in_flight_words(IN_FLIGHT), ROWS, IN_FLIGHT)


def in_flight_table(factors: Factors) -> Iterator[Cell]:
    """Throughput by the number of batches in flight, which the paper does not say."""
    rows: tuple[Row, ...] = (
        *("edge-solo", "cloud-edge-even", "cloud-edge-opt"),
        *("edgeshard", "exact-latency-plan"),
    )
    for model in factors:
        setting = Setting(model=model, factor=factors[model])
        for number in IN_FLIGHT_TRIED:
            yield from _rates("in-flight", setting, in_flight_words(number), rows, number)


def bandwidth_sweep(factors: Factors) -> Iterator[Cell]:
    """Both objectives over the bandwidth of source and cloud; the paper's curves: not found."""
    for model in factors:
        for mbps in testbed()["default_links"]["sweep_mbps"]:
            setting = Setting(model=model, factor=factors[model], source_cloud_mbps=mbps)
            words = f"{mbps} Mbit/s"
            for cell in _latencies("bandwidth", setting, words, SWEPT):
                yield _unreported(cell)
            rows = (*SWEPT, "exact-latency-plan")
            for cell in _rates("bandwidth", setting, words, rows, IN_FLIGHT_SWEPT):
                yield _unreported(cell)


def source_study(factors: Factors) -> Iterator[Cell]:
    """Latency with either kind of edge device as the source; the paper's figures: not found."""
    for kind in SOURCES:
        setting = Setting(model=TRACED, factor=factors[TRACED], source=kind)
        for batch in (BATCH, 1):
            words = f"source {kind}, batch {batch}"
            for cell in _latencies("source", replace(setting, batch=batch), words, LATENCY_ROWS):
                yield _unreported(cell)


def bubbles_study(factors: Factors) -> Iterator[Cell]:
    """Rounds (bubbles) against next tokens that leave at once, on the throughput plans."""
    for model in factors:
        for row in BUBBLED:
            setting = Setting(model=model, factor=factors[model])
            costs, spans = planned(setting, row, "throughput")
            for number in IN_FLIGHT_TRIED:
                for in_rounds, name in ((True, "bubbles"), (False, "no bubbles")):
                    yield Cell(
                        study="bubbles",
                        model=model,
                        setting=f"{in_flight_words(number)}, {name}",
                        method=row,
                        figure="tokens/s",
                        ours=None
                        if spans is None
                        else tokens_per_second(costs, spans, BATCH, number, in_rounds=in_rounds),
                    )


STUDIES: dict[str, Callable[[Factors], Iterator[Cell]]] = {
    "main": main_table,
    "in-flight": in_flight_table,
    "bandwidth": bandwidth_sweep,
    "source": source_study,
    "bubbles": bubbles_study,
}


def _latencies(study: str, setting: Setting, words: str, rows: tuple[Row, ...]) -> Iterator[Cell]:
    for row in rows:
        costs, spans = planned(setting, row, "latency")
        paper, confidence = reported(LATENCY, setting.model, _of_paper(row))
        yield Cell(
            study=study,
            model=setting.model,
            setting=words,
            method=row,
            figure="ms/token",
            ours=None if spans is None else token_milliseconds(costs, spans),
            paper=paper,
            confidence=confidence,
            is_anchor=row == "exact"
            and setting == Setting(model=setting.model, factor=setting.factor)
            and setting.model != TRACED,
        )


def _rates(
    study: str, setting: Setting, words: str, rows: tuple[Row, ...], in_flight: int
) -> Iterator[Cell]:
    for row in rows:
        costs, spans = planned(setting, row, "throughput")
        paper, confidence = reported(THROUGHPUT, setting.model, _of_paper(row))
        yield Cell(
            study=study,
            model=setting.model,
            setting=words,
            method=row,
            figure="tokens/s",
            ours=None
            if spans is None
            else tokens_per_second(costs, spans, setting.batch, in_flight),
            paper=paper,
            confidence=confidence,
        )


def _of_paper(row: Row) -> str:
    """The exact planner stands beside what the paper reports of its own method."""
    return ANCHOR if row.startswith("exact") else row


def _unreported(cell: Cell) -> Cell:
    return replace(cell, paper=None, confidence="none found", is_anchor=False)

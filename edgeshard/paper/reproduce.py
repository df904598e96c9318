"""Write the studies: a Markdown table, a CSV file and a picture of each."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeshard.errors import InputError
from edgeshard.paper.calibrate import factor_of
from edgeshard.paper.cells import Cell, comma_separated, markdown
from edgeshard.paper.fleets import Compared, compare, summarise, summary_markdown
from edgeshard.paper.plots import plot, plot_fleets
from edgeshard.paper.studies import STUDIES
from edgeshard.paper.testbed import MODELS, TRACED, Model

FLEETS = "fleets"
ALL_STUDIES = (*STUDIES, FLEETS)
NUM_FLEETS = 500


def reproduce(
    folder: Path,
    studies: Sequence[str] = ALL_STUDIES,
    models: Sequence[Model] = MODELS,
    num_fleets: int = NUM_FLEETS,
    on_step: Callable[[str], None] = lambda text: None,
) -> None:
    """Run studies and write what they find; nothing is written before all are done.

    Raises:
        InputError: the folder cannot be written.
    """
    factors: dict[Model, float] = {}
    if any(name in STUDIES for name in studies):
        for model in models:
            on_step(f"calibrating {model}")
            factors[model] = factor_of(model)
    cells: dict[str, list[Cell]] = {}
    compared: list[Compared] = []
    for name in studies:
        on_step(f"study {name}")
        if name == FLEETS:
            compared = [one for number in range(num_fleets) for one in compare(number)]
        else:
            cells[name] = list(STUDIES[name](factors))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in cells.items():
            (folder / f"{name}.md").write_text(_page(name, factors, found), "utf-8")
            (folder / f"{name}.csv").write_text(comma_separated(found), "utf-8")
            plot(name, found, folder / f"{name}.svg")
        if compared:
            (folder / f"{FLEETS}.md").write_text(_fleets_page(compared, num_fleets), "utf-8")
            _write_fleets(folder / f"{FLEETS}.csv", compared)
            plot_fleets(compared, folder / f"{FLEETS}.svg")
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from error


def _page(name: str, factors: dict[Model, float], cells: Sequence[Cell]) -> str:
    parts = [f"# {name}\n", f"Written by `esc reproduce-paper --study {name}`.\n"]
    parts += [
        f"{model}: unit times are the trace's mean times {factor:.4f}, so that the exact latency "
        "plan at the default setting takes the paper's EdgeShard latency.\n"
        for model, factor in factors.items()
        if model != TRACED
    ]
    return "\n".join([*parts, markdown(cells)])


def _fleets_page(compared: Sequence[Compared], num_fleets: int) -> str:
    drawn = f"{num_fleets} fleets were drawn; those that no plan fits are left out."
    written = f"Written by `esc reproduce-paper --study {FLEETS}`. {drawn}\n"
    return "\n".join([f"# {FLEETS}\n", written, summary_markdown(summarise(compared))])


def _write_fleets(path: Path, compared: Sequence[Compared]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Compared)])
        for one in compared:
            writer.writerow((one.fleet, one.objective, one.method, f"{one.ratio:.6g}"))

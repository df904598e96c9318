"""One figure of ours beside the paper's, and tables of them as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from edgeshard.paper.testbed import testbed

HEADER = ("study", "model", "setting", "method", "figure", "ours", "paper", "error", "paper is")
OUT_OF_MEMORY = "does not fit"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure.

    Attributes:
        setting: what it was taken under, in words.
        figure: what it is, with its unit.
        ours: None where the plan does not fit.
        paper: None where no source gives one, or where the paper reports no memory for it.
        confidence: of the paper's figure: sourced, recalled, or why there is none.
        is_anchor: whether the model was calibrated to the paper's figure.
    """

    study: str
    model: str
    setting: str
    method: str
    figure: str
    ours: float | None
    paper: float | None = None
    confidence: str = "none found"
    is_anchor: bool = False

    @property
    def error(self) -> float | None:
        """Ours relative to the paper's, less one."""
        return self.ours / self.paper - 1 if self.ours is not None and self.paper else None

    def words(self) -> tuple[str, ...]:
        """The cell below `HEADER`."""
        no_memory = "out of memory" in self.confidence
        paper = "out of memory" if no_memory else _number(self.paper, "–")
        error = "" if self.error is None else f"{self.error:+.1%}"
        return (
            *(self.study, self.model, self.setting, self.method, self.figure),
            *(_number(self.ours, OUT_OF_MEMORY), paper),
            f"{error} (calibrated)" if self.is_anchor and error else error,
            self.confidence,
        )


def reported(figure: str, model: str, method: str) -> tuple[float | None, str]:
    """The paper's figure and how it is known; a cell without memory has None and says so."""
    entry = testbed()["reported"][figure].get(model, {}).get(method)
    if entry is None:
        return None, "none found"
    if entry["value"] is None:
        return None, f"out of memory, {entry['confidence']}"
    return float(entry["value"]), str(entry["confidence"])


def markdown(cells: Sequence[Cell]) -> str:
    """A table of all cells."""
    rows = [HEADER, ("---",) * len(HEADER), *(cell.words() for cell in cells)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def comma_separated(cells: Sequence[Cell]) -> str:
    """All cells with full figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*HEADER, "calibrated"))
    for cell in cells:
        figures = (cell.ours, cell.paper, cell.error)
        names = (cell.study, cell.model, cell.setting, cell.method, cell.figure)
        plain = ("" if figure is None else f"{figure:.6g}" for figure in figures)
        writer.writerow((*names, *plain, cell.confidence, "yes" if cell.is_anchor else ""))
    return text.getvalue()


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.2f}" if value < 1000 else f"{value:.0f}"

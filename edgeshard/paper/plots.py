"""Cells as pictures: bars of ours beside the paper's, lines over bandwidth or batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeshard.paper.cells import Cell
from edgeshard.paper.fleets import Compared
from edgeshard.paper.methods import ROWS
from edgeshard.paper.studies import BATCH, IN_FLIGHT, in_flight_words

COLOURS = {row: f"C{index}" for index, row in enumerate(ROWS)}
Panel = Callable[[Axes, list[Cell]], None]


def plot(study: str, cells: Sequence[Cell], path: Path) -> None:
    """Draw a study: a column for each model, a row for each figure."""
    draw = _PANELS[study]
    models = list(dict.fromkeys(cell.model for cell in cells))
    figures = list(dict.fromkeys(cell.figure for cell in cells))
    size = (4.6 * len(models) + 1.2, 3.6 * len(figures) + 0.4)
    picture = Figure(figsize=size, layout="constrained")
    grid = picture.subplots(len(figures), len(models), squeeze=False)
    for row, figure in enumerate(figures):
        for column, model in enumerate(models):
            axes = grid[row][column]
            here = [cell for cell in cells if (cell.figure, cell.model) == (figure, model)]
            draw(axes, here)
            axes.set_title(model)
            axes.set_ylabel(figure)
    save(picture, path, f"{study}: ours and the paper's")


def plot_fleets(compared: Sequence[Compared], path: Path) -> None:
    """How a baseline's objective is spread over fleets: the share of them below each ratio."""
    objectives = list(dict.fromkeys(one.objective for one in compared))
    picture = Figure(figsize=(5.4 * len(objectives), 4), layout="constrained")
    grid = picture.subplots(1, len(objectives), squeeze=False)
    for axes, objective in zip(grid[0], objectives, strict=True):
        here = [one for one in compared if one.objective == objective]
        for method in dict.fromkeys(one.method for one in here):
            ratios = sorted(one.ratio for one in here if one.method == method)
            shares = [(index + 1) / len(ratios) for index in range(len(ratios))]
            axes.step(ratios, shares, where="post", label=method)
        axes.set_xlim(0.98, 4)
        axes.set_ylim(0, 1)
        axes.set_title(objective)
        axes.set_xlabel("times the exact planner's objective; no plan: never reached")
        axes.set_ylabel("share of fleets at or below")
        axes.legend(fontsize="small")
    save(picture, path, "baselines over random fleets")


def save(picture: Figure, path: Path, title: str) -> None:
    """Write a picture: text stays text, and equal pictures are equal files."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeshard"}):
        is_svg = path.suffix == ".svg"
        picture.savefig(path, metadata={"Title": title, "Date": None} if is_svg else None)


def _bars(axes: Axes, cells: list[Cell]) -> None:
    """Ours by method, and a mark where the paper has a figure: filled if sourced."""
    settings = {f"batch {BATCH}", in_flight_words(IN_FLIGHT)}
    shown = [cell for cell in cells if cell.setting in settings]
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.margins(y=0.3)  # room for the legend
    for place, cell in enumerate(shown):
        if cell.ours is None:
            axes.text(place, 0, "does not fit", rotation=90, ha="center", va="bottom")
        else:
            axes.bar(place, cell.ours, color=COLOURS[cell.method])  # type: ignore[index]  # a Row
        if cell.paper is not None:
            face = "black" if cell.confidence.startswith("sourced") else "white"
            axes.plot(place, cell.paper, "D", color="black", markerfacecolor=face)
    axes.set_xticks(range(len(shown)), [cell.method for cell in shown], rotation=40, ha="right")
    axes.plot([], [], "D", color="black", label="paper, sourced")
    axes.plot([], [], "D", color="black", markerfacecolor="white", label="paper, recalled")
    axes.legend(fontsize="small")


def _sources(axes: Axes, cells: list[Cell]) -> None:
    """Ours by method, a bar for each source."""
    kinds = [f"source {kind}, batch {BATCH}" for kind in ("agx-orin", "orin-nx")]
    methods = list(dict.fromkeys(cell.method for cell in cells))
    for index, kind in enumerate(kinds):
        for place, method in enumerate(methods):
            cell = next(one for one in cells if (one.setting, one.method) == (kind, method))
            left = place + 0.4 * (index - 0.5)
            if cell.ours is None:
                axes.text(left, 0, "does not fit", rotation=90, ha="center", va="bottom")
            else:
                axes.bar(left, cell.ours, 0.38, color=f"C{index}")
    for index, kind in enumerate(kinds):
        axes.bar(0, 0, color=f"C{index}", label=kind)
    axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right")
    axes.legend(fontsize="small")


def _lines(axes: Axes, cells: list[Cell]) -> None:
    """Ours over the number that the setting begins with, a line for each method and variant."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        variant = "bubbles" if cell.setting.endswith(", bubbles") else ""
        if cell.ours is not None:
            points = lines.setdefault((cell.method, variant), [])
            points.append((float(cell.setting.split()[0]), cell.ours))
    for index, ((method, variant), points) in enumerate(lines.items()):
        style = "--" if variant else "-"
        axes.plot(
            *zip(*points, strict=True),
            f"{style}o",
            color=COLOURS[method],  # type: ignore[index]  # a Row
            markersize=3,
            linewidth=max(1.0, 4.0 - 0.5 * index),  # equal lines stay visible below each other
            label=f"{method} {variant}".strip(),
        )
    reported = [cell.paper for cell in cells if cell.method == "edgeshard" and cell.paper]
    if reported:
        axes.axhline(reported[0], color="black", linestyle=":", label="edgeshard in the paper")
    unit = " ".join(cells[-1].setting.split(",")[0].split()[1:])
    axes.set_xlabel(f"source to cloud, {unit}" if "bit" in unit else f"{unit} in flight")
    axes.set_ylim(0, 1.1 * max(cell.ours for cell in cells if cell.ours is not None))
    axes.legend(fontsize="small")


_PANELS: dict[str, Panel] = {
    "main": _bars,
    "in-flight": _lines,
    "bandwidth": _lines,
    "source": _sources,
    "bubbles": _lines,
}

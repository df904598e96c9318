"""A run to look at: a Chrome trace (chrome://tracing, Perfetto), and a picture.

device      ▓▓▓▓░░▓▓░░▓▓          a lane for each device and each link, in the order of the
a -> b          ▒▒  ▒▒  ▒▒        chain; a colour for each request, prompts darkest
"""

from __future__ import annotations

from pathlib import Path

from edgeshard.chrome_trace import Slice
from edgeshard.chrome_trace import chrome_trace as format_trace
from edgeshard.errors import InputError
from edgeshard.simulate.engine import Busy, Run
from edgeshard.simulate.figures import places

SUFFIXES = (".svg", ".png")


def chrome_trace(run: Run) -> dict[str, object]:
    """The run in Chrome's trace event format; see `edgeshard.chrome_trace`."""
    slices = (
        Slice(
            one.where,
            f"{one.kind} of request {one.request}",
            one.kind,
            one.start,
            one.stop,
            {"request": one.request},
        )
        for one in run.busy
    )
    return format_trace(places(run), slices)


def draw(run: Run, path: Path, start: float = 0.0, stop: float | None = None) -> None:
    """Draw the part of a run from `start` to `stop` seconds as SVG or PNG, by the path's suffix.

    Raises:
        InputError: another suffix, nothing to see in that time, or the folder cannot be written.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure

    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends with none of {', '.join(SUFFIXES)}; name a picture")
    end = run.tokens[-1].seconds if stop is None else stop
    seen = [one for one in run.busy if one.start < end and one.stop > start]
    if not seen:
        raise InputError(f"nothing happens from {start} to {end} s; choose another time")
    lanes = [where for where in places(run) if any(one.where == where for one in seen)]
    picture = Figure(figsize=(11, 1.2 + 0.32 * len(lanes)), layout="constrained")
    axes = picture.add_subplot()
    for lane, where in enumerate(lanes):
        here = [one for one in seen if one.where == where]
        axes.broken_barh(
            [_bar(one, start, end) for one in here],
            (lane - 0.4, 0.8),
            facecolors=[to_rgba(f"C{one.request % 10}", _ALPHA[one.kind]) for one in here],
        )
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlim(start, end)
    axes.set_xlabel("seconds")
    axes.set_title("a colour for each request: prompts full, tokens paler, transfers palest")
    try:
        picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


_ALPHA = {"prompt": 1.0, "token": 0.7, "transfer": 0.3}


def _bar(one: Busy, start: float, end: float) -> tuple[float, float]:
    left, right = max(one.start, start), min(one.stop, end)
    return left, right - left

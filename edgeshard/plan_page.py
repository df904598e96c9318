"""A plan as one HTML page of its own: chain, units, and a few tokens in time."""

from __future__ import annotations

import html
from collections.abc import Sequence

from edgeshard.planner.explain import Explanation
from edgeshard.planner.table import HEADER, plan_rows, plan_summary
from edgeshard.schemas.plan import Plan, Stage

WIDTH = 1000
ROW = 34
COLOURS = ("#3b6ea5", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#3a7d7c", "#a23b72", "#6b705c")
NUM_ROUNDS = 3
MOST_REQUESTS = 4
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1040px; color: #222;
  padding: 0 1rem; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: .85rem } td, th { padding: .25rem .6rem }
th { text-align: left; border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd }
td:nth-child(n+5), th:nth-child(n+5) { text-align: right }
svg { width: 100%; height: auto; display: block } svg text { font: 13px system-ui, sans-serif }
figcaption, .small { color: #555; font-size: .85rem } figure { margin: 1rem 0 }
"""


def plan_page(plan: Plan, explanation: Explanation, model: str) -> str:
    """The page's text."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in plan_rows(plan)
    )
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEADER)
    facts = "".join(f"<li>{html.escape(line)}</li>" for line in plan_summary(plan))
    helps = "".join(
        f"<li>{html.escape(more.what)}: {more.token_seconds * 1e3:.2f} ms per token, "
        f"{more.tokens_per_second:.1f} tokens/s</li>"
        for more in explanation.improvements
    )
    title = f"{html.escape(model)}: {len(plan.stages)} stages"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><ul>{facts}</ul>"
        f"<h2>Chain</h2><figure>{_chain(plan)}<figcaption>Boxes are devices with their units and "
        "memory; arrows carry hidden states, the last one the token, back to the source."
        "</figcaption></figure>"
        f"<h2>Units</h2><figure>{_band(plan)}<figcaption>A cell for each unit, embedding to head."
        "</figcaption></figure>"
        f"<h2>A few tokens</h2><figure>{_timeline(plan)}<figcaption>Predicted decode steps; each "
        f"shade is a request. Planned for {plan.slots} at a time.</figcaption></figure>"
        f"<h2>Stages</h2><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f"<h2>What more would give</h2><ul>{helps}</ul></body></html>\n"
    )


def _chain(plan: Plan) -> str:
    """Boxes from left to right, a few in each line."""
    per_line, wide, gap, tall = 4, 178, 80, 92
    parts = []
    for index, stage in enumerate(plan.stages):
        line, column = divmod(index, per_line)
        x, y = 4 + column * (wide + gap), 16 + line * (tall + 44)
        share = stage.memory.total_bytes / stage.memory.limit_bytes
        parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{tall}" rx="8" fill="none" '
            f'stroke="{_colour(index)}" stroke-width="2"/>'
            + _text(x + 10, y + 22, stage.device, "font-weight:600")
            + _text(x + 10, y + 42, f"units [{stage.start}, {stage.stop})")
            + _text(x + 10, y + 60, f"{stage.decode_seconds * 1e3:.2f} ms a token")
            + f'<rect x="{x + 10}" y="{y + 70}" width="{wide - 20}" height="10" fill="#e5e5e5"/>'
            f'<rect x="{x + 10}" y="{y + 70}" width="{(wide - 20) * min(share, 1):.1f}" '
            f'height="10" fill="{_colour(index)}"/>'
        )
        ms = f"{stage.hop_seconds * 1e3:.2f}"
        last = index + 1 == len(plan.stages)
        arrow = "↩" if last else "→"
        parts.append(_text(x + wide + 30, y + 38, arrow, "font-size:20px"))
        parts.append(_text(x + wide + 12, y + 58, f"{ms} ms"))
    lines = -(-len(plan.stages) // per_line)
    return _svg(1040, 16 + lines * (tall + 44), parts)


def _band(plan: Plan) -> str:
    """All units in a row, coloured by stage."""
    num_units = plan.stages[-1].stop
    wide = WIDTH / num_units
    parts = [
        f'<rect x="{unit * wide:.2f}" y="0" width="{max(wide - 1, 0.5):.2f}" height="26" '
        f'fill="{_colour(index)}"/>'
        for index, stage in enumerate(plan.stages)
        for unit in range(stage.start, stage.stop)
    ]
    parts += [
        _text(stage.start * wide + 2, 44, stage.device)
        for stage in plan.stages
        if (stage.stop - stage.start) * wide > 8 * len(stage.device)
    ]
    return _svg(WIDTH, 52, parts)


def _timeline(plan: Plan) -> str:
    """A row for each stage, a bar for each step of each request."""
    steps = _schedule(plan.stages, min(plan.slots, MOST_REQUESTS))
    end = max(stop for _, _, _, stop in steps)
    left, scale = 150, (WIDTH - 160) / end
    parts = [
        _text(0, index * ROW + 21, stage.device[:20]) for index, stage in enumerate(plan.stages)
    ]
    for row, request, start, stop in steps:
        parts.append(
            f'<rect x="{left + start * scale:.2f}" y="{row * ROW + 4}" '
            f'width="{max((stop - start) * scale, 1):.2f}" height="{ROW - 10}" '
            f'fill="{_colour(row)}" fill-opacity="{1 - 0.2 * request:.2f}"/>'
        )
    base = len(plan.stages) * ROW
    for tick in range(6):
        at = end * tick / 5
        style = "fill:#555;text-anchor:middle"
        parts.append(_text(left + at * scale, base + 16, f"{at * 1e3:.1f} ms", style))
    return _svg(WIDTH + 40, base + 26, parts)


def _schedule(stages: Sequence[Stage], num_requests: int) -> list[tuple[int, int, float, float]]:
    """Steps as `(stage, request, start, stop)`: first come, first served, three tokens each."""
    free = [0.0] * len(stages)
    ready = [0.0] * num_requests
    steps = []
    for _ in range(NUM_ROUNDS):
        for request in range(num_requests):
            now = ready[request]
            for index, stage in enumerate(stages):
                begin = max(now, free[index])
                free[index] = begin + stage.decode_seconds
                steps.append((index, request, begin, free[index]))
                now = free[index] + stage.hop_seconds
            ready[request] = now
    return steps


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{html.escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">'
        f"{''.join(parts)}</svg>"
    )

"""`esc verify --links`: what rounding hidden states between stages costs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import msgspec
import typer

from edgeshard.errors import InputError
from edgeshard.schemas.common import Activation

if TYPE_CHECKING:
    from edgeshard.schemas.accuracy import Accuracy


def verify_links(
    store: Path,
    models: Sequence[str],
    links: Sequence[str],
    cuts: str,
    text: str,
    window: int,
    windows: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure, print, and write where `out` says.

    Raises:
        InputError: an option makes no sense; names what would.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.link_quality import measure_links
    from edgeshard.runtime.text import load_text
    from edgeshard.schemas import files
    from edgeshard.windows import windows_of

    if len(models) > 1:
        raise InputError(f"links are measured of one model, {len(models)} were given")
    for link in links:
        if link not in get_args(Activation):
            raise InputError(f"unknown link {link!r}; known: {', '.join(get_args(Activation))}")
    opened = Store(store)
    manifest, blob = opened.model(models[0])
    opened.verify(manifest.blobs())
    found = measure_links(
        opened,
        manifest,
        blob,
        windows_of(load_text(opened, manifest).encode_raw(text), window, windows),
        tuple(dict.fromkeys(cast("Sequence[Activation]", links))),
        _numbers(cuts),
        on_window=lambda done, total: (
            None if as_json else typer.echo(f"  window {done + 1} of {total}", err=True)
        ),
    )
    typer.echo(json.dumps(msgspec.to_builtins(found), indent=2) if as_json else _table(found))
    if out is not None:
        files.write(out, found)


def _numbers(cuts: str) -> tuple[int, ...]:
    try:
        return tuple(int(cut) for cut in cuts.split(",")) if cuts else ()
    except ValueError as error:
        raise InputError(f"cuts {cuts!r} are no numbers; give such as 10,20") from error


def _table(found: Accuracy) -> str:
    lines = [
        f"fp32 links: perplexity {found.perplexity:.4f}, windows of {found.window} tokens",
        f"{'links':<7}{'tokens':>8}{'perplexity':>20}{'mean KL':>11}{'99 %':>10}{'top-1':>8}  cuts",
    ]
    for link in found.links:
        change = f"{100 * math.expm1(link.log_ratio):+.3f} ± {100 * link.log_ratio_error:.3f} %"
        lines.append(
            f"{link.activation:<7}{link.num_scored:>8}{change:>20}{link.mean_kl:>11.2e}"
            f"{link.high_kl:>10.2e}{link.top1_agreement:>8.2%}  {', '.join(map(str, link.cuts))}"
        )
    return "\n".join(lines)

"""`esc reproduce-paper`: the EdgeShard paper's comparison again, from its public trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edgeshard.errors import InputError

if TYPE_CHECKING:
    from edgeshard.paper.testbed import Model


def reproduce_paper(
    out: Annotated[Path, typer.Option(help="Folder for tables (Markdown, CSV) and pictures.")],
    study: Annotated[
        list[str] | None, typer.Option(help="Only this study; may be given again; default: all.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given again; default: all.")
    ] = None,
    fleets: Annotated[int, typer.Option(min=1, max=100_000, help="Random fleets to draw.")] = 500,
) -> None:
    """Simulate the paper's testbed and print no figure that was not computed.

    Every cell has ours, the paper's, the relative error, and whether the paper's figure was read in
    a public source or only recalled.
    """
    try:
        from edgeshard.paper.reproduce import ALL_STUDIES, reproduce
        from edgeshard.paper.testbed import MODELS
    except ImportError as error:
        raise InputError(
            f"simulating needs {error.name}: install the extra `simulate` (README)"
        ) from error
    chosen, models = study or list(ALL_STUDIES), model or list(MODELS)
    for option, words, known in (("study", chosen, ALL_STUDIES), ("model", models, MODELS)):
        for word in words:
            if word not in known:
                raise InputError(f"--{option} {word!r} is unknown; known: {', '.join(known)}")
    reproduce(
        out,
        chosen,
        cast("list[Model]", models),
        fleets,
        on_step=lambda text: typer.echo(text, err=True),
    )
    typer.echo(f"written to {out}")

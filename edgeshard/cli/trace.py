"""`esc trace`: where the time of each token goes in a deployed chain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeshard.errors import InputError, LinkError


def trace(
    prompt: Annotated[str, typer.Argument(help="What to answer; with --raw, what to continue.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of a client or an operator.")],
    out: Annotated[Path, typer.Option(help="Write the Chrome trace here.")] = Path("trace.json"),
    raw: Annotated[bool, typer.Option("--raw", help="Apply no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run one request, time every step on every stage and hop, and say what a token takes where.

    The file opens in Perfetto (ui.perfetto.dev) and chrome://tracing. Neither it nor the table has
    the prompt, the answer or token ids in it.
    """
    from rich.console import Console

    from edgeshard import trace_report
    from edgeshard.runtime.client import Client
    from edgeshard.runtime.token_times import token_times

    with (
        Client.connect(cluster, key) as client,
        client.generate(
            prompt, raw=raw, max_tokens=max_tokens, temperature=0, trace=True
        ) as generation,
    ):
        result = generation.finish()
    if result.trace is None:
        raise LinkError("the coordinator sent no trace; install the same edgeshard on both")
    steps = token_times(result.trace)
    try:
        out.write_text(json.dumps(trace_report.chrome(result.trace, steps)), "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    if as_json:
        typer.echo(json.dumps(trace_report.plain(result, steps), indent=2))
        return
    Console(file=sys.stdout).print(trace_report.table(steps))
    for line in trace_report.summary(result, steps):
        typer.echo(line)
    typer.echo(f"wrote {out}; open it in ui.perfetto.dev or chrome://tracing")

"""`esc bench`: how fast is a compiled model here?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeshard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeshard.artifacts.store import Store
    from edgeshard.bench import Row


def bench(
    store: Annotated[Path, typer.Option(help="Store with the compiled models.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Name in the store; may be given again; default: all.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the operators.")] = 2,
    contexts: Annotated[str, typer.Option(help="Decode after so many positions.")] = "64,1000,1900",
    prompts: Annotated[str, typer.Option(help="Prefill of so many tokens.")] = "37,1900",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each row.")] = 3,
    chain: Annotated[
        Path | None,
        typer.Option(
            help="Measure decode of the first model over three stages on loopback instead, beside "
            "one process; work in this folder."
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="With --chain: measure 1, 2, 4, … up to so many requests at once."
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(help="With --chain: logical cores, as 0,1, that every stage is pinned to."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure decode and prefill in one process; with --chain, three stages beside one process."""
    from edgeshard.artifacts.store import Store

    opened = Store(store)
    names = model or opened.models()
    if not names:
        raise InputError(f"no model in {store}; run `esc compile` first")
    if cores is not None and (chain is None or requests is not None):
        raise InputError("--cores needs --chain FOLDER, and goes without --requests")
    if requests is not None:
        if chain is None:
            raise InputError("--requests needs --chain FOLDER to work in")
        _bench_load(opened, names[0], chain, requests, rounds, as_json)
        return
    if chain is not None:
        pinned = _numbers(cores, least=0) if cores else []
        _bench_chain(opened, names[0], chain, pinned, rounds, as_json)
        return
    from edgeshard.bench import bench_model

    def show(row: Row) -> None:
        if not as_json:
            at = f"context {row.context}" if row.kind == "decode" else f"prompt {row.prompt}"
            low, high = min(row.samples), max(row.samples)
            typer.echo(
                f"{row.name:<24} {row.kind:<8} {at:<14} {row.tokens_per_second:8.1f} tokens/s "
                f"({low:.1f}-{high:.1f})"
            )

    rows: list[Row] = []
    for name in names:
        manifest, blob = opened.model(name)
        if len(names) > 1:
            wish = (str(threads), contexts, prompts, str(rounds))
            rows += _in_a_process(store, name, *wish, show)
            continue
        rows += bench_model(
            opened,
            manifest,
            blob,
            threads=threads,
            contexts=_numbers(contexts),
            prompts=_numbers(prompts),
            rounds=rounds,
            on_row=show,
        )
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))


def _in_a_process(
    store: Path,
    name: str,
    threads: str,
    contexts: str,
    prompts: str,
    rounds: str,
    on_row: Callable[[Row], None],
) -> list[Row]:
    """Measure one of several models where no other has left the memory as it is then."""
    import subprocess
    import sys

    import msgspec

    from edgeshard.bench import Row

    command = [sys.executable, "-P", "-m", "edgeshard", "bench", "--store", str(store), "--json"]
    command += ["--model", name, "--threads", threads, "--rounds", rounds]
    command += ["--contexts", contexts, "--prompts", prompts]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # it says what is wrong
    if done.returncode:
        raise typer.Exit(done.returncode)
    rows = msgspec.convert(json.loads(done.stdout)["rows"], list[Row])
    for row in rows:
        on_row(row)
    return rows


def _bench_chain(
    store: Store, name: str, folder: Path, cores: list[int], rounds: int, as_json: bool
) -> None:
    import statistics
    import sys

    from rich.console import Console

    from edgeshard.chain_bench import bench_chain
    from edgeshard.trace_report import table_of_shares

    manifest, blob = store.model(name)
    result = bench_chain(
        folder,
        store,
        manifest,
        blob,
        cores=cores,
        rounds=rounds,
        on_step=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    typer.echo(
        f"{result.num_stages} stages: predicted {result.predicted_ms:.2f} ms a token, measured "
        f"{sorted(result.chain_ms)[len(result.chain_ms) // 2]:.2f} "
        f"({result.prediction_error:+.1%}); {result.decode_ratio:.2f} of the one-process rate"
    )
    typer.echo(
        f"traced in rounds of their own: {statistics.median(result.traced_ms):.2f} ms a token"
    )
    Console(file=sys.stdout).print(table_of_shares(result.parts))


def _bench_load(
    store: Store, name: str, folder: Path, most: int, rounds: int, as_json: bool
) -> None:
    from edgeshard.load_bench import bench_load

    manifest, blob = store.model(name)
    rows = bench_load(
        folder,
        store,
        manifest,
        blob,
        most=most,
        rounds=rounds,
        on_step=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        typer.echo(
            f"{row.requests:3} at once {row.tokens_per_second:8.1f} tokens/s "
            f"({min(row.samples):.1f}-{max(row.samples):.1f})  {row.token_ms:.1f} ms a token of one"
        )


def _numbers(text: str, *, least: int = 1) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is not a list of numbers like 64,1000") from error
    if min(numbers) < least:
        raise InputError(f"{min(numbers)} in {text!r} is less than {least}")
    return numbers

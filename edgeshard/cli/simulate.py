"""`esc simulate`: what a plan would do with many requests; needs no device and no model."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from edgeshard.errors import InputError

if TYPE_CHECKING:
    from edgeshard.schemas.plan import Plan
    from edgeshard.simulate import Arrival, Figures, Run


def simulate(
    plan: Annotated[Path, typer.Argument(help="The plan file.")],
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="How many come.")] = 1,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of each prompt; default: the plan's.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 64,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second, at random; default: all at once.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Requests in flight at most; default: the plan's.")
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(min=3, help="Prompt positions of a step; default: what `esc deploy` takes."),
    ] = None,
    beside_steps: Annotated[int, typer.Option(min=0, help="As `esc deploy` takes it.")] = 0,
    groups: Annotated[
        int | None,
        typer.Option(min=1, help="Of slots that step together; default: the plan's."),
    ] = None,
    row_cost: Annotated[
        float,
        typer.Option(min=0, max=1, help="Compute of each further sequence of a step, as a share."),
    ] = 1.0,
    bubbles: Annotated[
        bool, typer.Option("--bubbles", help="Send next tokens in rounds, all together.")
    ] = False,
    transfers: Annotated[
        str | None, typer.Option(help="overlapped or blocking; default: as the plan assumes.")
    ] = None,
    shared: Annotated[
        str,
        typer.Option(
            help="Frames compete for: none (each link its own), device (its one radio) or medium."
        ),
    ] = "none",
    jitter: Annotated[
        float, typer.Option(min=0, max=0.99, help="Durations vary by this share either way.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of jitter and arrivals.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace here.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the timeline here, as .svg or .png.")
    ] = None,
    until: Annotated[float | None, typer.Option(help="Draw only so many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a plan on paper, under the schedule that the coordinator uses.

    Prints time between tokens, rate and utilisation. Stages and hops take the time that the plan
    predicts; what comes out of them in turns, chunks and queues is simulated.
    """
    try:
        from edgeshard.simulate import Options, chain_of_plan, figures
        from edgeshard.simulate import simulate as run_chain
        from edgeshard.simulate.engine import Shared
    except ImportError as error:
        raise InputError(
            f"simulating needs {error.name}: install the extra `simulate` (README)"
        ) from error
    from edgeshard.runtime.schedule import Limits
    from edgeshard.runtime.schedule_limits import CHUNK_TOKENS
    from edgeshard.schemas import files
    from edgeshard.schemas.common import Transfers
    from edgeshard.schemas.plan import Plan

    _check_word("--shared", shared, get_args(Shared))
    made = files.read(plan, Plan)
    transfers = transfers or made.transfers
    _check_word("--transfers", transfers, get_args(Transfers))
    limits = Limits(
        slots=slots or made.slots,
        context=made.context,
        chunk_tokens=chunk_tokens or CHUNK_TOKENS,
        beside_steps=beside_steps,
        window=len(made.stages),
        max_waiting=requests,
        in_rounds=bubbles,
        num_groups=groups or (made.groups or None if made.batch > 1 else None),
    )
    options = Options(
        transfers=cast("Transfers", transfers),
        shared=cast("Shared", shared),
        row_cost=row_cost,
        jitter=jitter,
        seed=seed,
    )
    arrivals = _arrivals(requests, prompt_tokens or made.prompt_tokens, new_tokens, rate, seed)
    run = run_chain(chain_of_plan(made), limits, arrivals, options)
    found = figures(run)
    _write(run, trace, picture, until)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else _text(found, made))


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise InputError(f"{option} {word!r} is unknown; known: {', '.join(known)}")


def _arrivals(
    requests: int, prompt_tokens: int, new_tokens: int, rate: float | None, seed: int
) -> list[Arrival]:
    from edgeshard.simulate import Arrival

    if rate is not None and not rate > 0:
        raise InputError(f"--rate {rate} is not above 0; leave it out for all at once")
    draw, at = random.Random(seed), 0.0
    arrivals = []
    for _ in range(requests):
        arrivals.append(Arrival(at, prompt_tokens, new_tokens))
        at += draw.expovariate(rate) if rate is not None else 0.0
    return arrivals


def _write(run: Run, trace: Path | None, picture: Path | None, until: float | None) -> None:
    from edgeshard.simulate import chrome_trace, draw

    if trace is not None:
        try:
            trace.write_text(json.dumps(chrome_trace(run)), "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {trace}: {error.strerror or error}") from error
    if picture is not None:
        draw(run, picture, stop=until)


def _text(found: Figures, plan: Plan) -> str:
    lines = [
        f"{found.num_requests} requests, {found.num_tokens} tokens in {found.seconds:.3f} s: "
        f"{found.tokens_per_second:.1f} tokens/s"
        + (
            f", {found.steady_tokens_per_second:.1f} in the middle half"
            if found.steady_tokens_per_second is not None
            else ""
        )
        + f" (planned {plan.tokens_per_second:.1f})",
        f"first token after {found.first_token_seconds * 1000:.2f} ms on average "
        f"(planned {plan.first_token_seconds * 1000:.2f} for one request)",
    ]
    if found.token_seconds is not None:
        lines.append(
            f"{found.token_seconds * 1000:.2f} ms between tokens "
            f"(planned {plan.token_seconds * 1000:.2f} for one request)"
        )
    lines += [f"busy {use.share:6.1%}  {use.where}" for use in found.utilisation]
    return "\n".join(lines)

"""`esc plan`: choose devices and cuts from a profile; needs no device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from edgeshard.errors import InputError
from edgeshard.schemas.common import Blob, Objective

TYPICAL_PROMPT = 128

if TYPE_CHECKING:
    from edgeshard.planner.baselines import Method
    from edgeshard.schemas.model import ModelManifest
    from edgeshard.schemas.plan import Plan
    from edgeshard.schemas.profile import Profile


def plan(
    profile: Annotated[Path, typer.Option(help="The profile file.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file; names the source.")],
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[str, typer.Option(help="Name of the model in the store.")],
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    context: Annotated[int, typer.Option(min=1, help="Positions of a sequence.")] = 2048,
    slots: Annotated[int, typer.Option(min=1, help="Sequences held at once.")] = 1,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt length to expect; 128, or half of a shorter context."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Plan by a baseline of the paper, by its name.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the plan goes.")] = Path("plan.json"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan.")] = False,
) -> None:
    """Choose devices and cut points for one request's latency or for throughput.

    Weights, keys and values for context × slots, and workspace must fit every device's memory; the
    first unit stays on the source. Prints the plan and writes it.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.planner.baselines import Method
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster
    from edgeshard.schemas.profile import Profile

    if objective not in get_args(Objective):
        known = ", ".join(get_args(Objective))
        raise InputError(f"unknown objective {objective!r}; known: {known}")
    if method not in (None, *get_args(Method)):
        raise InputError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
    manifest, blob = Store(store).model(model)
    write_plan(
        manifest,
        blob,
        files.read(profile, Profile),
        files.read(cluster, Cluster).source,
        cast("Objective", objective),
        context,
        slots,
        out,
        prompt_tokens=prompt_tokens,
        method=cast("Method | None", method),
        force=force,
    )


def write_plan(
    model: ModelManifest,
    model_blob: Blob,
    profile: Profile,
    source: str,
    objective: Objective,
    context: int,
    slots: int,
    out: Path,
    *,
    prompt_tokens: int | None = None,
    method: Method | None = None,
    force: bool = False,
) -> Plan:
    """Make a plan, print it and write it; the whole file or none.

    Raises:
        InputError: the file exists and `force` is not given.
        PlanError: nothing fits; names device and missing bytes.
    """
    from edgeshard.planner import make_plan, plan_table
    from edgeshard.schemas import files

    if out.exists() and not force:
        raise InputError(f"{out} exists; give --force to replace it or another place")
    expected = prompt_tokens or max(1, min(TYPICAL_PROMPT, context // 2))
    made = make_plan(
        model,
        model_blob.digest,
        profile,
        source,
        objective,
        context,
        slots,
        expected,
        method=method,
    )
    files.write(out, made)
    typer.echo(plan_table(made))
    typer.echo(f"written to {out}")
    return made

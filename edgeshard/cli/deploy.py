"""`esc deploy`: put a plan into effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeshard.runtime.deploy import Deployment, DeployProgress
    from edgeshard.schemas.plan import Plan


def deploy(
    plan: Annotated[Path, typer.Argument(help="The plan file that `esc plan` wrote.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of an operator.")],
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model in the store; default: what the plan was made for."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(min=0, help="Seconds that requests of what runs now may take to finish."),
    ] = 0.0,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Prompt positions of a step, 256 by default.",
        ),
    ] = None,
    beside_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps that other answers have to themselves behind each 256 of a long prompt: "
            "more slow those less, and the prompt more.",
        ),
    ] = 0,
    share_prompts: Annotated[
        bool,
        typer.Option(
            "--share-prompts",
            help="Let a client's prompt start with what another's left; its speed tells of it.",
        ),
    ] = False,
) -> None:
    """Send each device what it lacks, load every stage and start serving.

    What ran on the devices before is stopped. Where a stage cannot be loaded, nothing runs.
    """
    from edgeshard.artifacts.fuse import fuse
    from edgeshard.artifacts.store import Store
    from edgeshard.runtime.deploy import deploy as deploy_plan
    from edgeshard.runtime.keys import load_keys
    from edgeshard.runtime.schedule_limits import CHUNK_TOKENS
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster
    from edgeshard.schemas.plan import Plan

    opened = Store(store)
    made = files.read(plan, Plan)
    manifest, blob = opened.find(made.model) if model is None else opened.model(model)
    deployment = deploy_plan(
        opened,
        manifest,
        blob,
        made,
        files.read(cluster, Cluster),
        load_keys(key),
        fuse,
        others=[opened.find(one) for one in sorted({*made.models} - {made.model})],
        on_progress=Narrator(),
        drain_seconds=drain,
        chunk_tokens=CHUNK_TOKENS if chunk_tokens is None else chunk_tokens,
        beside_steps=beside_steps,
        share_prompts=share_prompts,
    )
    for index, stage in enumerate(deployment.stages):
        typer.echo(
            f"stage {index}: units {stage.start}-{stage.stop} on {stage.device}, "
            f"{stage.resident_bytes / 2**20:.0f} MiB resident, loaded in {stage.load_seconds:.1f} s"
        )
    typer.echo(
        f"{deployment.sent_bytes / 1e6:.1f} MB sent, {deployment.present_bytes / 1e6:.1f} MB were "
        "there already"
    )
    for remark in remarks(made, deployment):
        typer.echo(remark)


def remarks(plan: Plan, deployment: Deployment) -> Iterator[str]:
    """What may change the tokens of this chain's answers, a line each."""
    from edgeshard.planner.table import company

    if deployment.is_mixed:
        yield "mixed: stages differ in provider, target, precision or ONNX Runtime version"
    if deployment.is_lossy:
        yield f"lossy: hidden states travel as {', '.join(deployment.links)} between stages"
    if plan.depends_on_company:
        yield from company(plan)


class Narrator:
    """Prints progress to standard error, of transfers a line for every tenth."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def __call__(self, progress: DeployProgress) -> None:
        """Print a line, or nothing."""
        text = progress.text
        if progress.total_bytes:
            tenth = 10 * progress.done_bytes // progress.total_bytes
            if self._tenths.get(progress.device) == tenth:
                return
            self._tenths[progress.device] = tenth
            text = f"{text} {progress.done_bytes / 1e6:.1f} of {progress.total_bytes / 1e6:.1f} MB"
        typer.echo(f"{progress.device}: {text}", err=True)

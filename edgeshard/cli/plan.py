"""`esc plan`: choose devices and cuts from a profile; needs no device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from edgeshard.errors import InputError
from edgeshard.schemas.common import Activation, Blob, Floor, Objective, Transfers, changed

TYPICAL_PROMPT = 128

if TYPE_CHECKING:
    from edgeshard.planner.baselines import Method
    from edgeshard.schemas.accuracy import Accuracy
    from edgeshard.schemas.model import ModelManifest
    from edgeshard.schemas.plan import Plan
    from edgeshard.schemas.profile import Profile


def plan(
    profile: Annotated[Path, typer.Option(help="The profile file.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file; names the source.")],
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="Name of the model in the store. May be repeated: one checkpoint at several "
            "precisions, of which each stage takes the fastest that fits."
        ),
    ],
    min_precision: Annotated[
        str | None,
        typer.Option(help="Lowest precision of a stage's weights: int4, int8, fp16 or fp32."),
    ] = None,
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    context: Annotated[int, typer.Option(min=1, help="Positions of a sequence.")] = 2048,
    slots: Annotated[int, typer.Option(min=1, help="Sequences held at once.")] = 1,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt length to expect; 128, or half of a shorter context."),
    ] = None,
    new_tokens: Annotated[
        int,
        typer.Option(min=0, help="Answer length, to weigh prefill by; 0: decode steps alone."),
    ] = 0,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sequences that a decode step takes together; default: as many as give the "
            "highest rate, and for latency 1 where answers would depend on who else is served.",
        ),
    ] = None,
    activation: Annotated[
        str, typer.Option(help="Hidden states on links: fp32, or rounded to fp16 or int8.")
    ] = "fp32",
    accuracy: Annotated[
        Path | None,
        typer.Option(help="What rounding them costs, as `esc verify --links` wrote it."),
    ] = None,
    transfers: Annotated[
        str | None,
        typer.Option(
            help="overlapped, or blocking: devices stand still while they send or receive; "
            "default: as the cluster file says."
        ),
    ] = None,
    head_at_source: Annotated[
        bool,
        typer.Option(
            "--head-at-source", help="No output token leaves the source: it has the head."
        ),
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="Plan by a baseline of the paper, by its name.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say where time and memory go and what would help.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Draw the plan as a page.")] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Plan for another profile, print both and write none: link:A-B=10mbps, "
            "link:A-B=gone, device:A=gone, device:A=512mib. May be repeated."
        ),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Print what else there is: latency, rate, devices.")
    ] = False,
    replicas: Annotated[
        bool, typer.Option("--replicas", help="Print what several chains side by side would give.")
    ] = False,
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
    out: Annotated[Path, typer.Option(help="Where the plan goes.")] = Path("plan.json"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan.")] = False,
) -> None:
    """Choose devices and cut points for one request's latency or for throughput.

    Weights, keys and values for context × slots, and workspace must fit every device's memory; the
    first unit stays on the source. Prints the plan and writes it.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.plan_report import Report, what_if_json, what_if_text
    from edgeshard.planner.baselines import Method
    from edgeshard.planner.batches import CostTables
    from edgeshard.planner.plan import costs_of
    from edgeshard.planner.precisions import allowed
    from edgeshard.planner.what_if import what_if as changed_profile
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster
    from edgeshard.schemas.profile import Profile

    _known("objective", objective, get_args(Objective))
    _known("activation", activation, get_args(Activation))
    _known("format", format, ("text", "json"))
    if method is not None:
        _known("method", method, get_args(Method))
    if min_precision is not None:
        _known("precision", min_precision, get_args(Floor))
    opened = Store(store)
    (manifest, blob), *others = allowed(
        [opened.model(name) for name in dict.fromkeys(model)],
        cast("Floor | None", min_precision),
    )
    measured = files.read(profile, Profile)
    devices = files.read(cluster, Cluster)
    transfers = transfers or devices.transfers
    _known("transfers", transfers, get_args(Transfers))
    wishes = Wishes(
        manifest,
        blob,
        devices.source,
        cast("Objective", objective),
        context,
        slots,
        prompt_tokens or max(1, min(TYPICAL_PROMPT, context // 2)),
        new_tokens,
        batch,
        cast("Activation", activation),
        cast("Method | None", method),
        None if accuracy is None else _accuracy(accuracy, [blob, *(one for _, one in others)]),
        head_at_source,
        tuple(others),
        cast("Transfers", transfers),
    )
    if what_if:
        before, after = wishes.plan(measured), wishes.plan(changed_profile(measured, what_if))
        typer.echo((what_if_json if format == "json" else what_if_text)(before, after))
        return
    _check_free(out, force)
    if html is not None:
        _check_free(html, force)
    made = wishes.plan(measured)
    tables = CostTables(
        lambda rows: costs_of(
            measured, changed(made, batch=rows), manifest, [other for other, _ in others]
        )
    )
    report = Report(made, measured, tables, wishes.plan, batch)
    if format == "json":
        typer.echo(report.json(explain, front, replicas))
    else:
        typer.echo(report.text(explain, front, replicas))
    if html is not None:
        report.write_page(html, manifest.name)
    files.write(out, made)
    if format == "text":
        typer.echo(f"written to {out}")


@dataclass(frozen=True)
class Wishes:
    """What is planned, for whom, and what for."""

    model: ModelManifest
    blob: Blob
    source: str
    objective: Objective
    context: int
    slots: int
    prompt_tokens: int
    new_tokens: int = 0
    batch: int | None = None
    activation: Activation = "fp32"
    method: Method | None = None
    accuracy: Accuracy | None = None
    head_at_source: bool = False
    others: tuple[tuple[ModelManifest, Blob], ...] = ()
    transfers: Transfers = "overlapped"

    def plan(self, profile: Profile) -> Plan:
        """The plan for a profile."""
        from edgeshard.planner import make_plan

        made = make_plan(
            self.model,
            self.blob.digest,
            profile,
            self.source,
            self.objective,
            self.context,
            self.slots,
            self.prompt_tokens,
            method=self.method,
            new_tokens=self.new_tokens,
            batch=self.batch,
            activation=self.activation,
            head_at_source=self.head_at_source,
            others=[(other, blob.digest) for other, blob in self.others],
            transfers=self.transfers,
        )
        if self.accuracy is None or self.activation == "fp32":
            return made
        if set(made.models) != {self.accuracy.model}:
            return made
        cuts = tuple(stage.start for stage in made.stages[1:])
        return changed(made, accuracy=self.accuracy.of(self.activation, cuts))


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
    force: bool = False,
) -> Plan:
    """Make a plan, print it and write it; the whole file or none.

    Raises:
        InputError: the file exists and `force` is not given.
        PlanError: nothing fits; names device and missing bytes.
    """
    from edgeshard.planner import plan_table
    from edgeshard.schemas import files

    _check_free(out, force)
    expected = max(1, min(TYPICAL_PROMPT, context // 2))
    made = Wishes(model, model_blob, source, objective, context, slots, expected).plan(profile)
    files.write(out, made)
    typer.echo(plan_table(made))
    typer.echo(f"written to {out}")
    return made


def _accuracy(path: Path, models: list[Blob]) -> Accuracy:
    from edgeshard.schemas import files
    from edgeshard.schemas.accuracy import Accuracy

    found = files.read(path, Accuracy)
    digests = [model.digest for model in models]
    if found.model not in digests:
        raise InputError(
            f"{path} was measured of model {found.model}, this one is {' or '.join(digests)}; "
            "measure it with `esc verify --links`"
        )
    return found


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise InputError(f"{path} exists; give --force to replace it or another place")


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {what} {value!r}; known: {', '.join(known)}")

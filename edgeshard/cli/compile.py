"""`esc compile`: a checkpoint into units in a store, and with a cluster or profile on to shards."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType, Objective, Precision, Target

if TYPE_CHECKING:
    from edgeshard.artifacts.store import Store
    from edgeshard.compiler.cache_scales import ShowCache
    from edgeshard.compiler.calibration import Calibration
    from edgeshard.compiler.finished import Compiled
    from edgeshard.schemas.profile import Profile

CALIBRATED = ("int4", "int8", "mixed")
KvWish = Literal["int8"] | None


def _list_architectures(wanted: bool) -> None:
    if wanted:
        from edgeshard.compiler.families import listing

        typer.echo(listing())
        raise typer.Exit


class Wishes(TypedDict):
    """What a person wants of a compile; as for `compile_model`."""

    name: str | None
    precision: Precision | None
    target: Target
    variants: tuple[Target, ...]
    activations: FloatType | None
    context: int
    bits: float | None


class RateColumn(ProgressColumn):
    """How many million weights a second are done."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate / 1e6:.0f} M weights/s")


def compile_command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Store that the model goes into.")],
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, bf16, int8, int4, mixed (4, 6 and 8 bits), or stored (as in the "
            "GGUF); without it: stored for a quantised GGUF, fp32 otherwise."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="ort (fused operators), portable, tensorrt, or several of them: ort,portable."
        ),
    ] = "ort",
    activations: Annotated[
        str | None,
        typer.Option(
            help="Type between the products, of keys and of values: float32, float16 or bfloat16; "
            "without it: that of fp16 or bf16 weights, float32 otherwise."
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            min=4, max=32, help="Most that a weight may take: mixed 7.5 and int4 4.5 unless given."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text that says what matters; the model must fit into memory."),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="int8: keys and values in a quarter of the memory, for CPUs; how large they get "
            "is seen on the text of --calibrate, or on one of our own."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the store.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Units compiled at once; without it: the processors."),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="Go on to plan and fuse for this cluster, after measuring its agents."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="With --cluster: plan from this profile instead; needs no device."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Secret key file of an operator; needed to measure live agents."),
    ] = None,
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    context: Annotated[
        int,
        typer.Option(min=1, help="Positions of a sequence; the tensorrt target is made for them."),
    ] = 2048,
    slots: Annotated[int, typer.Option(min=1, help="Sequences held at once.")] = 1,
    plan: Annotated[
        Path, typer.Option(help="Write the plan here, and a measured profile beside it.")
    ] = Path("plan.json"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan.")] = False,
    list_architectures: Annotated[
        bool,
        typer.Option(
            "--list-architectures",
            help="Print the model families that compile, and what is tested of each.",
            callback=_list_architectures,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Compile a checkpoint; two compiles of the same input give the same manifest digest.

    With --cluster (live agents) or --profile (offline) it goes on to plan and fuse the shards.
    """
    from edgeshard.artifacts.store import Store

    del list_architectures  # its callback has answered
    # Whatever can be refused is refused before the long part.
    chosen = _choices(precision, target, activations, objective, kv)
    measured = _offline_profile(profile, cluster)
    if (cluster or profile) and plan.exists() and not force:
        raise InputError(f"{plan} exists; give --force to replace it or --plan for another place")
    if cluster and not profile and not key:
        raise InputError("--cluster measures live agents and needs --key; or give --profile")
    store = Store(out)
    first, *variants = chosen[1]
    compiled = run_compile(
        model,
        store,
        chosen[0],
        first,
        name,
        variants=variants,
        activations=chosen[2],
        context=context,
        jobs=jobs,
        bits=bits,
        text=calibrate,
        kv=chosen[4],
    )
    if cluster or profile:
        _plan_and_fuse(
            store, compiled, cluster, key, measured, chosen[3], context, slots, plan, force
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: what is imported and traced stays, and walks over it find nothing.

    Nor at the end of the process, where the walk over torch took a second and more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@_uncollected()
def run_compile(
    model: Path,
    store: Store,
    precision: Precision | None,
    target: Target,
    name: str | None = None,
    console: Console | None = None,
    *,
    variants: Sequence[Target] = (),
    activations: FloatType | None = None,
    context: int = 2048,
    jobs: int | None = None,
    bits: float | None = None,
    text: Path | None = None,
    kv: KvWish = None,
) -> Compiled:
    """Compile with a progress bar on standard error, and say what came out."""
    from edgeshard.compiler import finished, generation

    wishes: Wishes = {
        "name": name,
        "precision": precision,
        "target": target,
        "variants": tuple(variants),
        "activations": activations,
        "context": context,
        "bits": bits,
    }
    words = None if text is None else _words(text, precision, kv)
    shown = None if kv is None else words or _own_text()
    key = finished.key_of(model, {**wishes, "text": words, "kv": kv, "shown": shown})
    compiled = None if key is None else finished.find(store, key)
    if compiled is None:
        compiled = _compile(model, store, wishes, words, shown, jobs, console)
        if key is not None:
            finished.leave(store, key, compiled)
    manifest = compiled.manifest
    for notice in compiled.notices:
        typer.echo(f"note: {notice}", err=True)
    if defaults := generation.shown(manifest.generation):
        typer.echo(f"note: requests that say nothing else: {defaults}", err=True)
    weights = sum(blob.size_bytes for blob in manifest.blobs() if blob.suffix == ".safetensors")
    reused = f" ({compiled.num_reused} made before)" if compiled.num_reused else ""
    typer.echo(
        f"{manifest.name}: {len(manifest.units)} units{reused}, {weights / 1e6:.1f} MB of weights, "
        f"{manifest.precision} for {' and '.join(manifest.targets)}\n{compiled.blob.digest}"
    )
    return compiled


def _compile(
    model: Path,
    store: Store,
    wishes: Wishes,
    words: str | None,
    shown: str | None,
    jobs: int | None,
    console: Console | None,
) -> Compiled:
    """Compile with a progress bar; `shown` is the text for keys and values in int8."""
    try:
        from edgeshard.compiler.compile import compile_model
    except ImportError as error:
        raise InputError(
            f"compiling needs {error.name}: install the extra `compile` (README, Installing)"
        ) from error
    calibration = None
    if words is not None and wishes["precision"] in CALIBRATED:
        calibration = _calibrate(model, words, wishes["precision"])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compile")
        return compile_model(
            model,
            store,
            **wishes,
            jobs=jobs,
            calibration=calibration,
            show_cache=None if shown is None else _shower(store, shown),
            on_progress=lambda p: bar.update(
                task, description=f"{p.step:<22}", completed=p.done, total=max(p.total, 1)
            ),
        )


def _shower(store: Store, text: str) -> ShowCache:
    from edgeshard.cache_ranges import cache_shower

    return cache_shower(store, text)


def _own_text() -> str:
    """What keys and values are seen on where no text is given."""
    return resources.files("edgeshard").joinpath("texts", "grant.txt").read_text("utf-8")


def _words(text: Path, precision: Precision | None, kv: KvWish) -> str:
    """The text to calibrate with."""
    if precision not in CALIBRATED and kv is None:
        raise InputError("--calibrate is for the precisions int4, int8 and mixed, and for --kv")
    try:
        return text.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text {text} cannot be read: {error}; give a UTF-8 file") from error


def _calibrate(model: Path, words: str, precision: Precision | None) -> Calibration:
    from edgeshard.calibrate import calibrate

    return calibrate(model, words, with_gains=precision != "int8", on_step=_to_stderr)


def _choices(
    precision: str | None, target: str, activations: str | None, objective: str, kv: str | None
) -> tuple[Precision | None, tuple[Target, ...], FloatType | None, Objective, KvWish]:
    from typing import cast, get_args

    targets = tuple(dict.fromkeys(target.split(",")))
    for what, value, known in (
        ("precision", precision, get_args(Precision)),
        *(("target", one, get_args(Target)) for one in targets),
        ("activations", activations, get_args(FloatType)),
        ("objective", objective, get_args(Objective)),
        ("kv", kv, ("int8",)),
    ):
        if value is not None and value not in known:
            raise InputError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    return (
        cast("Precision | None", precision),
        cast("tuple[Target, ...]", targets),
        cast("FloatType | None", activations),
        cast("Objective", objective),
        cast("KvWish", kv),
    )


def _offline_profile(profile: Path | None, cluster: Path | None) -> Profile | None:
    from edgeshard.schemas import files
    from edgeshard.schemas.profile import Profile

    if profile is None:
        return None
    if cluster is None:
        raise InputError("--profile says what devices can do, --cluster which one is the source")
    return files.read(profile, Profile)


def _plan_and_fuse(
    store: Store,
    compiled: Compiled,
    cluster_path: Path | None,
    key: Path | None,
    measured: Profile | None,
    objective: Objective,
    context: int,
    slots: int,
    plan_path: Path,
    force: bool,
) -> None:
    from edgeshard.artifacts.fuse import fuse
    from edgeshard.cli.plan import write_plan
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster
    from edgeshard.schemas.targets import view_for

    assert cluster_path is not None
    cluster = files.read(cluster_path, Cluster)
    manifest, blob = compiled.manifest, compiled.blob
    if measured is None:
        from edgeshard.runtime.keys import load_keys
        from edgeshard.runtime.profile_cluster import profile_cluster

        assert key is not None
        measured = profile_cluster(
            store, manifest, blob, cluster, load_keys(key), on_progress=_to_stderr
        )
        files.write(plan_path.with_name("profile.json"), measured)
    made = write_plan(
        manifest, blob, measured, cluster.source, objective, context, slots, plan_path, force=force
    )
    for index, stage in enumerate(made.stages):
        view = view_for(manifest, stage.provider)
        shard, shard_blob = fuse(store, view, blob, stage.start, stage.stop)
        typer.echo(
            f"shard {index} for {stage.device}: {shard.weights_bytes / 1e6:.1f} MB of weights, "
            f"graph {store.path(shard.graph)}, manifest {shard_blob.digest}"
        )


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)

"""`esc verify`: is the store whole, and how far is the model from its checkpoint?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeshard.cli.verify_links import verify_links
from edgeshard.errors import InputError

if TYPE_CHECKING:
    from edgeshard.artifacts.store import Store
    from edgeshard.quality import Quality
    from edgeshard.schemas.common import Blob
    from edgeshard.schemas.model import ModelManifest

SENTENCE = "The capital of France is Paris. The river that flows through it is the Seine, and"


def verify(
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[
        list[str],
        typer.Option(help="Name of the model in the store; with --quality, give several."),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="What it was compiled from; without it only digests are checked."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 file to compare on; without it a text that comes along."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Greedy tokens to compare.")] = 16,
    quality: Annotated[
        bool,
        typer.Option("--quality", help="Perplexity, KL divergence and top-1 agreement on a text."),
    ] = False,
    window: Annotated[
        int, typer.Option(min=2, help="With --quality: tokens that are seen together.")
    ] = 512,
    windows: Annotated[
        int, typer.Option(min=1, help="With --quality: most windows, spread over the text.")
    ] = 16,
    links: Annotated[
        list[str] | None,
        typer.Option(
            help="What hidden states lose between stages as fp16 or int8; needs no checkpoint. "
            "May be repeated."
        ),
    ] = None,
    cuts: Annotated[
        str, typer.Option(help="With --links: first unit of each stage behind the first: 10,20.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="With --links: file for `esc plan --accuracy`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every blob's digest; with --checkpoint, report the error of each unit and end to end.

    The reference is transformers in fp32 with the checkpoint's (dequantised) weights. Nothing
    leaves this machine.
    """
    from edgeshard.artifacts.store import Store

    if links:
        verify_links(store, model, links, cuts, _text(text, True), window, windows, out, as_json)
        return
    if quality and checkpoint is None:
        raise InputError("--quality compares with a checkpoint: give --checkpoint")
    if checkpoint is not None and not quality and len(model) > 1:
        raise InputError(f"{len(model)} models are compared with --quality only; else give one")
    words = _text(text, quality)
    opened = Store(store)
    models = [opened.model(name) for name in model]
    for manifest, _ in models:
        num_blobs = _check_blobs(opened, manifest)
        if checkpoint is None:
            plain = json.dumps({"model": manifest.name, "whole_blobs": num_blobs})
            typer.echo(plain if as_json else f"{manifest.name}: {num_blobs} blobs are whole")
    if checkpoint is None:
        return
    try:
        if quality:
            _quality(opened, models, checkpoint, words, window, windows, as_json)
        else:
            _compare(opened, *models[0], checkpoint, words, tokens, as_json)
    except ImportError as error:
        raise InputError(
            f"comparing needs {error.name}: install the extra `compile` (README)"
        ) from error


def _text(path: Path | None, quality: bool) -> str:
    if path is None:
        own = resources.files("edgeshard").joinpath("texts", "lincoln.txt")
        return own.read_text("utf-8") if quality else SENTENCE
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text {path} cannot be read: {error}; give a UTF-8 file") from error


def _check_blobs(store: Store, manifest: ModelManifest) -> int:
    blobs = manifest.blobs()
    store.verify(blobs)
    return len(blobs)


def _compare(
    store: Store,
    manifest: ModelManifest,
    blob: Blob,
    checkpoint: Path,
    text: str,
    num_tokens: int,
    as_json: bool,
) -> None:
    from edgeshard.runtime.text import load_text
    from edgeshard.verify import verify_model

    if manifest.tokenizer is None:
        ids: tuple[int, ...] = tuple((7 * i + 3) % manifest.vocab_size for i in range(24))
    else:
        ids = load_text(store, manifest).encode_raw(text)
    found = verify_model(
        store,
        manifest,
        blob,
        checkpoint,
        ids,
        num_tokens=num_tokens,
        on_unit=lambda name: None if as_json else typer.echo(f"  {name}", err=True),
    )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    typer.echo(f"{'unit':<12}{'relative':>12}{'largest':>12}")
    for unit in found.units:
        typer.echo(f"{unit.unit:<12}{unit.relative:>12.3e}{unit.largest:>12.3e}")
    typer.echo(
        f"end to end: relative {found.relative:.3e}, largest {found.largest:.3e}, "
        f"mean KL {found.mean_kl:.3e}, top-1 agreement {found.top1_agreement:.1%}, greedy tokens "
        f"{found.identical_tokens} of {found.num_tokens} identical"
    )


def _quality(
    store: Store,
    models: list[tuple[ModelManifest, Blob]],
    checkpoint: Path,
    text: str,
    window: int,
    windows: int,
    as_json: bool,
) -> None:
    from edgeshard.quality import measure_quality
    from edgeshard.runtime.text import load_text
    from edgeshard.windows import windows_of

    ids = load_text(store, models[0][0]).encode_raw(text)
    found = measure_quality(
        store,
        models,
        checkpoint,
        windows_of(ids, window, windows),
        on_window=lambda done, total: (
            None if as_json else typer.echo(f"  window {done + 1} of {total}", err=True)
        ),
    )
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else _table(found))


def _table(found: Quality) -> str:
    """What each model loses, then where: a column for each model."""
    lines = [
        f"{found.num_scored} tokens, fp32 perplexity {found.perplexity:.4f}",
        f"{'model':<24}{'bits':>6}{'MB':>9}{'perplexity':>12}{'against fp32':>18}"
        f"{'mean KL':>11}{'99 %':>10}{'top-1':>8}",
    ]
    for model in found.models:
        change = f"{100 * math.expm1(model.log_ratio):+.2f} ± {100 * model.log_ratio_error:.2f} %"
        lines.append(
            f"{model.name[:23]:<24}{model.bits_per_weight:>6.2f}{model.weights_bytes / 1e6:>9.1f}"
            f"{model.perplexity:>12.4f}{change:>18}{model.mean_kl:>11.2e}{model.high_kl:>10.2e}"
            f"{model.top1_agreement:>8.1%}"
        )
    lines += ["", "relative error of each unit: bits, alone, and with the units before it"]
    lines.append(" " * 12 + "".join(f"{model.name[:25]:>28}" for model in found.models))
    for row in zip(*(model.units for model in found.models), strict=True):
        cells = (f"{u.bits_per_weight:>8.2f}{u.alone:>10.2e}{u.so_far:>10.2e}" for u in row)
        lines.append(f"{row[0].unit:<12}" + "".join(cells))
    return "\n".join(lines)

"""`esc verify`: is the store whole, and how far is the model from its checkpoint?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

TEXT = "The capital of France is Paris. The river that flows through it is the Seine, and"


def verify(
    store: Annotated[Path, typer.Option(help="Store with the compiled model.")],
    model: Annotated[str, typer.Option(help="Name of the model in the store.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="What it was compiled from; without it only digests are checked."),
    ] = None,
    text: Annotated[str, typer.Option(help="Text to compare on.")] = TEXT,
    tokens: Annotated[int, typer.Option(min=0, help="Greedy tokens to compare.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every blob's digest; with --checkpoint, report the error of each unit and end to end.

    The reference is transformers in fp32 with the checkpoint's (dequantised) weights.
    """
    from edgeshard.artifacts.store import Store
    from edgeshard.errors import InputError
    from edgeshard.runtime.text import load_text

    opened = Store(store)
    manifest, blob = opened.model(model)
    blobs = {b.digest: b for unit in manifest.units for b in (unit.graph, *unit.weights)}
    blobs |= {b.digest: b for b in (manifest.tokenizer, manifest.chat_template) if b is not None}
    opened.verify(blobs.values())
    if checkpoint is None:
        plain = json.dumps({"model": model, "whole_blobs": len(blobs)})
        typer.echo(plain if as_json else f"{model}: {len(blobs)} blobs are whole")
        return
    try:
        from edgeshard.verify import verify_model
    except ImportError as error:
        raise InputError(
            f"comparing needs {error.name}: install the extra `compile` (README)"
        ) from error
    if manifest.tokenizer is None:
        ids: tuple[int, ...] = tuple((7 * i + 3) % manifest.vocab_size for i in range(24))
    else:
        ids = load_text(opened, manifest).encode_raw(text)
    found = verify_model(
        opened,
        manifest,
        blob,
        checkpoint,
        ids,
        num_tokens=tokens,
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

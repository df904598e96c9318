"""`esc generate`: ask the deployed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeshard.runtime.client import Generation, Result


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer; with --raw, what to continue.")],
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of a client or an operator.")],
    raw: Annotated[bool, typer.Option("--raw", help="Apply no chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="0 takes the likeliest token.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Candidates at most; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest set of candidates of this probability.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end instead of text.")
    ] = False,
) -> None:
    """Stream an answer to standard output, and its timings to standard error.

    Ctrl-C cancels the request, which frees its place on every stage.
    """
    from edgeshard.runtime.client import Client

    with (
        Client.connect(cluster, key) as client,
        client.generate(
            prompt,
            raw=raw,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop or (),
        ) as generation,
    ):
        try:
            result = _follow(generation, as_json)
        except KeyboardInterrupt:
            generation.close()
            typer.echo("\ncancelled", err=True)
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(_plain(result), ensure_ascii=False))
    else:
        typer.echo(_timings(result), err=True)


def _follow(generation: Generation, as_json: bool) -> Result:
    for token in generation:
        if not as_json:
            typer.echo(token.text, nl=False)
    if not as_json:
        typer.echo()
    return generation.result


def _timings(result: Result) -> str:
    text = (
        f"{result.prompt_tokens} prompt tokens, {len(result.token_ids)} tokens "
        f"({result.finish_reason}); first after {result.first_token_seconds * 1000:.0f} ms"
    )
    if result.token_seconds:
        mean = sum(result.token_seconds) / len(result.token_seconds)
        text += f", then {mean * 1000:.1f} ms each ({1 / mean:.1f} tokens/s)"
    if result.is_mixed:
        text += "; mixed: stages differ in provider or ONNX Runtime version"
    return text


def _plain(result: Result) -> dict[str, object]:
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "first_token_seconds": result.first_token_seconds,
        "token_seconds": result.token_seconds,
        "compute_seconds": result.compute_seconds,
        "is_mixed": result.is_mixed,
    }

"""`esc generate`: ask the deployed model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeshard.errors import InputError

if TYPE_CHECKING:
    from edgeshard.runtime.client import Client, Generation, Result
    from edgeshard.runtime.replicas import Replicas


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer; with --raw, what to continue.")],
    cluster: Annotated[
        list[Path],
        typer.Option(
            help="The cluster file; given again, of a replica: the one with the least wait answers."
        ),
    ],
    key: Annotated[Path, typer.Option(help="Secret key file of a client or an operator.")],
    raw: Annotated[bool, typer.Option("--raw", help="Apply no chat template.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens at most; without it the model's, or 256.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0, max=100, help="0 takes the likeliest token; without it the model's, or 0."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Candidates at most; 0: all; without it the model's, or 0."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Smallest set of candidates of this probability; without it the model's, or 1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")
    ] = None,
    answers: Annotated[
        int, typer.Option("--answers", "-n", min=1, help="Answers to the prompt.")
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="With --json: log-probabilities, and of so many alternatives."),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of tokens in the prompt or the answer; 1: none; without it the model's, or 1.",
        ),
    ] = None,
    presence_penalty: Annotated[
        float, typer.Option(min=-2, max=2, help="Of tokens that are in the answer.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(min=-2, max=2, help="The same, for each time.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="TOKEN=BIAS, by token id; may be given again.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which the answer ends as it is.")
    ] = None,
    reuse_answers: Annotated[
        bool,
        typer.Option(
            "--reuse-answers", help="Start with what earlier answers left too; bits may differ."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end instead of text.")
    ] = False,
) -> None:
    """Stream an answer to standard output, and its timings to standard error.

    Ctrl-C cancels the request, which frees its place on every stage.
    """
    from edgeshard.runtime.parameters import Options

    options: Options = {
        "seed": seed,
        "stop": stop or (),
        "n": answers,
        "logprobs": logprobs,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": _biases(logit_bias or ()),
        "deadline_seconds": deadline,
        "reuse_answers": reuse_answers,
    }
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if top_k is not None:
        options["top_k"] = top_k
    if top_p is not None:
        options["top_p"] = top_p
    if repetition_penalty is not None:
        options["repetition_penalty"] = repetition_penalty
    with (
        _connect(cluster, key) as client,
        client.generate(prompt, raw=raw, **options) as generation,
    ):
        try:
            results = _follow(generation, is_shown=not as_json and answers == 1)
        except KeyboardInterrupt:
            generation.close()
            typer.echo("\ncancelled", err=True)
            raise typer.Exit(130) from None
    if as_json:
        plain = [_plain(result) for result in results]
        typer.echo(json.dumps(plain if answers > 1 else plain[0], ensure_ascii=False))
        return
    for number, result in enumerate(results):
        if answers > 1:
            typer.echo(f"{result.text}\n")
            typer.echo(f"answer {number + 1}, seed {result.seed}: ", nl=False, err=True)
        typer.echo(timings(result), err=True)


def _connect(clusters: Sequence[Path], key: Path) -> Client | Replicas:
    from edgeshard.runtime.client import Client
    from edgeshard.runtime.replicas import Replicas

    if len(clusters) > 1:
        return Replicas.connect(clusters, key)
    return Client.connect(clusters[0], key)


def _biases(words: Sequence[str]) -> dict[int, float]:
    biases = {}
    for word in words:
        token, _, bias = word.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise InputError(f"--logit-bias is {word!r}; give TOKEN=BIAS, as in 42=-5") from None
    return biases


def _follow(generation: Generation, is_shown: bool) -> tuple[Result, ...]:
    for token in generation:
        if is_shown:
            typer.echo(token.text, nl=False)
    if is_shown:
        typer.echo()
    return generation.results


def timings(result: Result) -> str:
    """One line on an answer that is over: its speed, and what may have changed its tokens."""
    text = (
        f"{result.prompt_tokens} prompt tokens, {len(result.token_ids)} tokens "
        f"({result.finish_reason}); first after {result.first_token_seconds * 1000:.0f} ms"
    )
    if result.token_seconds:
        mean = sum(result.token_seconds) / len(result.token_seconds)
        text += f", then {mean * 1000:.1f} ms each ({1 / mean:.1f} tokens/s)"
    if result.reused_tokens:
        text += f"; {result.reused_tokens} tokens of the prompt as earlier answers left them"
    if result.is_mixed:
        text += "; mixed: stages differ in provider, target, precision or ONNX Runtime version"
    if result.is_lossy:
        text += f"; lossy: hidden states travel as {', '.join(result.links)} between stages"
    if result.depends_on_company:
        text += "; company: who else was served may have changed it"
    return text


def _plain(result: Result) -> dict[str, object]:
    plain: dict[str, object] = {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "first_token_seconds": result.first_token_seconds,
        "token_seconds": result.token_seconds,
        "compute_seconds": result.compute_seconds,
        "is_mixed": result.is_mixed,
        "kept_tokens": result.kept_tokens,
        "reused_tokens": result.reused_tokens,
        "seed": result.seed,
        "links": result.links,
        "depends_on_company": result.depends_on_company,
    }
    if result.logprobs:
        plain["logprobs"] = result.logprobs
    if result.alternatives:
        plain["alternatives"] = [
            [{"token": one.token, "text": one.text, "logprob": one.logprob} for one in alternatives]
            for alternatives in result.alternatives
        ]
    return plain

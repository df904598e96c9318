"""Measures a chain on loopback: against the same model in one process, and against its plan."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.bench import OneProcess
from edgeshard.errors import LinkError
from edgeshard.local_run import Say, running_chain
from edgeshard.runtime.client import Client
from edgeshard.runtime.machine import physical_cores
from edgeshard.runtime.token_times import Share, StepTimes, breakdown, token_times
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest

PROMPT = "Write about rivers and the towns beside them. " * 3
NUM_TOKENS = 64


@dataclass(frozen=True)
class ChainResult:
    """Milliseconds a token, a sample for each round; predicted is the plan's.

    Attributes:
        decode_ratio: median of the paired ratios of the chain's rate to one process's.
        prediction_error: relative difference of predicted to the chain's median.
        traced_ms: mean of a token in each traced round; these rounds are in no other figure.
        parts: what a token of the traced rounds takes at each place.
    """

    num_stages: int
    prompt_tokens: int
    predicted_ms: float
    chain_ms: tuple[float, ...]
    one_process_ms: tuple[float, ...]
    decode_ratio: float
    prediction_error: float
    traced_ms: tuple[float, ...]
    parts: tuple[Share, ...]


def bench_chain(
    folder: Path,
    store: Store,
    model: ModelManifest,
    blob: Blob,
    *,
    context: int = 2048,
    cores: Sequence[int] = (),
    rounds: int = 7,
    on_step: Say = lambda _: None,
) -> ChainResult:
    """Measure decode of one request through three stages and, in turns, in one process.

    With `cores` every stage is pinned to them; the one process is not. Then as many rounds are
    traced, so that marking does not slow the measured ones; a traced request does not run ahead.
    """
    with running_chain(
        folder, store, model, blob, context=context, cores=cores, on_step=on_step, on_detail=on_step
    ) as running:
        alone = OneProcess(store, model, blob, physical_cores(), context)
        with Client.connect(running.local.cluster_path, running.local.key_path) as client:
            chain, single, length = [], [], 0
            for number in range(rounds + 1):
                length, milliseconds = measured_ms(client)
                seconds = alone.decode(length, NUM_TOKENS)
                if number:  # the first warms up
                    chain.append(milliseconds)
                    single.append(seconds / NUM_TOKENS * 1e3)
                    on_step(
                        f"round {number}: chain {chain[-1]:.2f}, one process {single[-1]:.2f} ms"
                    )
            traces = [traced_steps(client) for _ in range(rounds)]
        alone.close()
    predicted = running.plan.token_seconds * 1e3
    ratios = [one / many for one, many in zip(single, chain, strict=True)]
    return ChainResult(
        num_stages=len(running.plan.stages),
        prompt_tokens=length,
        predicted_ms=predicted,
        chain_ms=tuple(chain),
        one_process_ms=tuple(single),
        decode_ratio=statistics.median(ratios),
        prediction_error=predicted / statistics.median(chain) - 1,
        traced_ms=tuple(
            statistics.mean(step.seconds for step in steps if step.is_decode) * 1e3
            for steps in traces
        ),
        parts=tuple(breakdown([step for steps in traces for step in steps])),
    )


def measured_ms(client: Client, num_tokens: int = NUM_TOKENS) -> tuple[int, float]:
    """Prompt tokens, and mean milliseconds a token of one request after its first."""
    with client.generate(
        PROMPT, raw=True, max_tokens=num_tokens, temperature=0, ignore_eos=True
    ) as generation:
        result = generation.finish()
    return result.prompt_tokens, statistics.mean(result.token_seconds) * 1e3


def traced_steps(client: Client, num_tokens: int = NUM_TOKENS) -> list[StepTimes]:
    """The steps of one traced request.

    Raises:
        LinkError: the coordinator sent no trace.
    """
    with client.generate(
        PROMPT, raw=True, max_tokens=num_tokens, temperature=0, ignore_eos=True, trace=True
    ) as generation:
        result = generation.finish()
    if result.trace is None:
        raise LinkError("the coordinator sent no trace; install the same edgeshard on both")
    return token_times(result.trace)

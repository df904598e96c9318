"""A plan as text: a row per stage, then what the whole is predicted to do. Columns align.

stage  device  provider  units   weights MiB  KV MiB  total / limit MiB  decode ms  …
0      laptop  CPU       [0, 9)         41.2    36.0      187.2 / 256.0       2.31  …
"""

from __future__ import annotations

import math

from edgeshard.planner.memory import MIB
from edgeshard.schemas.plan import Certificate, Plan, Stage

HEADER = (
    "stage",
    "device",
    "provider",
    "units",
    "weights MiB",
    "KV MiB",
    "total / limit MiB",
    "decode ms",
    "prefill ms",
    "hop ms",
)
NUM_LEFT_COLUMNS = 4
"""Columns of text, aligned left; those behind are figures."""


def plan_rows(plan: Plan) -> list[list[str]]:
    """The cells below `HEADER`, a row per stage."""
    return [
        [
            str(index),
            stage.device,
            " ".join([stage.provider.removesuffix("ExecutionProvider"), *_precision(stage)]),
            f"[{stage.start}, {stage.stop})",
            f"{stage.memory.weights_bytes / MIB:.1f}",
            f"{stage.memory.kv_bytes / MIB:.1f}",
            f"{stage.memory.total_bytes / MIB:.1f} / {stage.memory.limit_bytes / MIB:.1f}",
            _milliseconds(stage.decode_seconds),
            _milliseconds(stage.prefill_seconds),
            _milliseconds(stage.hop_seconds),
        ]
        for index, stage in enumerate(plan.stages)
    ]


def plan_summary(plan: Plan) -> list[str]:
    """What the plan is predicted to do, what limits it and what it was chosen over; a line each."""
    compute_seconds = sum(stage.decode_seconds for stage in plan.stages)
    noun = "request" if plan.slots == 1 else "requests"
    lines = [
        f"{plan.objective}: {_milliseconds(plan.token_seconds)} ms per token "
        f"(compute {_milliseconds(compute_seconds)}, hops "
        f"{_milliseconds(plan.token_seconds - compute_seconds)}), first token of a prompt of "
        f"{plan.prompt_tokens} after {_milliseconds(plan.first_token_seconds)} ms",
        f"{plan.tokens_per_second:.1f} tokens/s with {plan.slots} {noun} in flight",
        f"bottleneck: {plan.bottleneck}",
        *([_proof(plan.objective, plan.certificate)] if plan.certificate else []),
        *_rounding(plan),
        *_precisions(plan),
        *company(plan),
    ]
    for alternative in plan.one_device:
        lack = alternative.missing_bytes
        room = f", but lacks {lack / MIB:.1f} MiB" if lack else " and has room"
        lines.append(
            f"one device: {alternative.device} alone would take "
            f"{_milliseconds(alternative.decode_seconds)} ms per token{room}"
        )
    lines += [f"left out: {left.device}: {left.reason}" for left in plan.left_out]
    return lines


def _rounding(plan: Plan) -> list[str]:
    """What is lost between stages, where something is."""
    rounded = sorted({link for link in plan.links if link != "fp32"})
    if not rounded:
        return []
    found, kinds = plan.accuracy, " and ".join(rounded)
    if found is None:
        return [
            f"lossy: hidden states travel as {kinds}; what that costs is not measured "
            f"(`esc verify --links {rounded[0]} --out FILE`, then --accuracy FILE)"
        ]
    return [
        f"lossy: hidden states travel as {kinds}: mean KL {found.mean_kl:.2e}, perplexity "
        f"{100 * math.expm1(found.log_ratio):+.2f} %, top-1 {found.top1_agreement:.1%} of fp32 "
        f"links', measured at cuts {', '.join(map(str, found.cuts))} on {found.num_scored} tokens"
    ]


def _precision(stage: Stage) -> list[str]:
    return [] if stage.precision is None else [stage.precision]


def _precisions(plan: Plan) -> list[str]:
    """Which precisions meet in the chain, where it is not one."""
    kinds = list(dict.fromkeys(stage.precision for stage in plan.stages if stage.precision))
    if not kinds:
        return []
    return [
        f"mixed: stages have weights in {' and '.join(kinds)}; the chain's accuracy is not "
        "measured, each model's is by `esc verify --quality`"
    ]


def company(plan: Plan) -> list[str]:
    """Whether answers depend on who else is served, where some devices would have it so."""
    if not plan.company:
        return []
    verb = "computes" if len(plan.company) == 1 else "compute"
    why = f"{', '.join(plan.company)} {verb} a row of several otherwise than one alone"
    if plan.depends_on_company:
        return [
            f"company: answers may depend on who else is served, as {why}; --batch 1 keeps them "
            "the same"
        ]
    return [
        "company: every request has steps of its own, so that answers do not depend on who else "
        f"is served, as {why}; a larger --batch shares steps and gives that up"
    ]


def plan_table(plan: Plan) -> str:
    """The stages as an aligned table with the summary below."""
    rows = [list(HEADER), *plan_rows(plan)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(row)), strict=True)
        lines.append(
            "  ".join(
                cell.ljust(width) if column < NUM_LEFT_COLUMNS else cell.rjust(width)
                for cell, width, column in cells
            ).rstrip()
        )
    return "\n".join([*lines, "", *plan_summary(plan)]) + "\n"


def _proof(objective: str, certificate: Certificate) -> str:
    if certificate.is_optimal:
        return f"proven optimal for {objective} over all chains of these devices"
    return (
        f"not proven optimal for {objective}: at most {certificate.gap:.2%} better is possible "
        f"({_milliseconds(certificate.seconds)} ms here, no plan below "
        f"{_milliseconds(certificate.bound_seconds)} ms)"
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"

"""Make a plan: manifest and profile in, stages and their predicted cost out.

    manifest ─┐
              ├─► cost table ─► partition ─► plan
    profile ──┘

Pure: the same values give the same plan, with no clock, file or device involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.alternatives import one_device
from edgeshard.planner.baselines import Method, baseline
from edgeshard.planner.batches import CostTables, Grouping, best_grouping, best_rate
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.hosts import Span
from edgeshard.planner.left_out import why_left_out
from edgeshard.planner.partition import best_partition
from edgeshard.planner.precisions import check_same
from edgeshard.planner.stages import Pace, seconds_of, stages_of
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Activation, Objective, Transfers, changed
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.plan import Certificate, LeftOut, Plan, Stage
from edgeshard.schemas.profile import Profile

NEW_TOKENS = 128
"""Length of the answer that the default decode context assumes."""


def make_plan(
    model: ModelManifest,
    model_digest: str,
    profile: Profile,
    source: str,
    objective: Objective,
    context: int,
    slots: int,
    prompt_tokens: int = 128,
    decode_context: int | None = None,
    method: Method | None = None,
    new_tokens: int = 0,
    batch: int | None = None,
    activation: Activation = "fp32",
    head_at_source: bool = False,
    others: Sequence[tuple[ModelManifest, str]] = (),
    transfers: Transfers = "overlapped",
) -> Plan:
    """Plan a model over the devices of a profile.

    Args:
        model: the compiled model.
        model_digest: digest of its manifest.
        profile: what was measured.
        source: name of the device that owns the prompts and hosts unit 0.
        objective: `latency` or `throughput`.
        context: positions of each slot, prompt and answer together.
        slots: sequences held at the same time.
        prompt_tokens: length of the prompt that is predicted.
        decode_context: positions held at the decode step that is predicted; None: the middle of an
            answer of 128 tokens, `prompt_tokens + 64`, or the context where that is less.
        method: the baseline to plan by; None: the best chain.
        new_tokens: length of the answer; the objective is then the mean over the request's tokens,
            its prefill among them. 0: what one decode step takes.
        batch: sequences that a decode step takes together; None: as many as give the highest rate,
            and for latency one where answers would depend on who else is served.
        activation: how hidden states travel between stages.
        head_at_source: no output token leaves the source: it runs the head too.
        others: the same checkpoint at other precisions, with the digests of their manifests; each
            stage takes what is fastest there, the first of those that take as long.
        transfers: whether a device computes while it sends and receives.

    Raises:
        InputError: an argument is out of range, or the profile is not usable.
        PlanError: nothing fits, or the source was not measured.
    """
    if decode_context is None:
        decode_context = min(prompt_tokens + (new_tokens or NEW_TOKENS) // 2, context)
    models = [model, *(other for other, _ in others)]
    check_same(models)
    least = min(models, key=lambda one: one.max_context)
    _check("context", context, 1, least.max_context, f"the context of {least.name}")
    _check("slots", slots, 1, None, "")
    _check("prompt tokens", prompt_tokens, 1, context, "the planned context")
    _check("decode context", decode_context, 0, context, "the planned context")
    _check("new tokens", new_tokens, 0, context - prompt_tokens, "what the prompt leaves")
    _check("batch", 1 if batch is None else batch, 1, slots, "the slots")
    if transfers == "blocking" and head_at_source:
        raise InputError(
            "the head at the source and blocking transfers are not planned together: the source "
            "would have two stages; leave one of them out"
        )
    for place in (place for one in models for place in _misfits(one, profile)):
        raise InputError(f"the profile contradicts {place}; run `esc profile` again")
    workload = Workload(
        context,
        slots,
        prompt_tokens,
        decode_context,
        new_tokens,
        batch or 1,
        activation,
        head_at_source,
        transfers,
    )

    def costs_for(rows: int) -> CostTable:
        return build_costs(model, profile, source, replace(workload, batch=rows), models[1:])

    costs = costs_for(workload.batch)
    tables = CostTables(costs_for)
    choice = _choose(costs, tables, objective, method, batch)
    digests = [model_digest, *(digest for _, digest in others)]
    stages = _with_models(choice, stages_of(choice.costs, choice.spans), digests)
    company = _company(choice)
    rows = choice.rows or (1 if company and objective == "latency" else None)
    grouping, pace = best_grouping(tables, choice.costs, choice.spans, slots, rows)
    if not pace.slowest_seconds > 0:
        raise InputError("the profile says that every stage takes 0 s; run `esc profile` again")
    token_seconds, first_token_seconds = seconds_of(choice.costs, stages)
    return Plan(
        model=digests[_model_of(choice, choice.spans[0])],
        objective=objective,
        source=source,
        context=context,
        slots=slots,
        prompt_tokens=prompt_tokens,
        stages=stages,
        token_seconds=token_seconds,
        first_token_seconds=first_token_seconds,
        tokens_per_second=slots / pace.cycle_seconds(grouping.groups),
        bottleneck=_bottleneck(pace, grouping),
        one_device=one_device(choice.costs),
        left_out=choice.left_out,
        certificate=choice.certificate,
        new_tokens=new_tokens,
        batch=choice.costs.workload.batch,
        groups=grouping.groups,
        activation=activation,
        head_at_source=head_at_source,
        transfers=transfers,
        unsupported=_unsupported(stages),
        company=company if slots > 1 else (),
    )


def costs_of(
    profile: Profile, plan: Plan, model: ModelManifest, others: Sequence[ModelManifest] = ()
) -> CostTable:
    """The cost table that a plan of `make_plan` was made from, its decode context the default."""
    decode_context = min(plan.prompt_tokens + (plan.new_tokens or NEW_TOKENS) // 2, plan.context)
    workload = Workload(
        plan.context,
        plan.slots,
        plan.prompt_tokens,
        decode_context,
        plan.new_tokens,
        plan.batch,
        plan.activation,
        plan.head_at_source,
        plan.transfers,
    )
    return build_costs(model, profile, plan.source, workload, others)


def _misfits(model: ModelManifest, profile: Profile) -> Iterator[str]:
    """Units that were measured as something that the manifest says they are not."""
    kinds = {unit.structure: unit.kind for unit in model.units}
    for device in profile.devices:
        for unit in device.units:
            kind = kinds.get(unit.structure, unit.kind)
            if kind != unit.kind:
                yield (
                    f"{model.name}: {device.name} measured structure {unit.structure[:19]} as "
                    f"{unit.kind}, the manifest has it as {kind}"
                )


@dataclass(frozen=True, slots=True)
class _Choice:
    """The spans and what they were chosen by; `rows` where the grouping is settled with them."""

    costs: CostTable
    spans: tuple[Span, ...]
    left_out: tuple[LeftOut, ...]
    certificate: Certificate | None
    rows: int | None


def _model_of(choice: _Choice, span: Span) -> int:
    """Which of the models a span is of, by its index."""
    return choice.costs.devices[span.device].providers[span.provider].model


def _company(choice: _Choice) -> tuple[str, ...]:
    """Devices that would compute a row of several otherwise than one alone."""
    found = []
    for span in choice.spans:
        device = choice.costs.devices[span.device]
        if any(device.providers[span.provider].rows_differ[span.start : span.stop]):
            found.append(device.name)
    return tuple(dict.fromkeys(found))


def _with_models(
    choice: _Choice, stages: tuple[Stage, ...], digests: Sequence[str]
) -> tuple[Stage, ...]:
    """The stages with model and precision, where not all have the same."""
    models = [_model_of(choice, span) for span in choice.spans]
    if len(set(models)) == 1:
        return stages
    return tuple(
        changed(stage, model=digests[one], precision=choice.costs.models[one].precision)
        for stage, one in zip(stages, models, strict=True)
    )


def _choose(
    costs: CostTable,
    tables: CostTables,
    objective: Objective,
    method: Method | None,
    rows: int | None,
) -> _Choice:
    """The spans, why other devices have none, and how good that is; baselines prove nothing."""
    if method is not None:
        return _Choice(costs, *_by_method(costs, objective, method), None, rows)
    if objective == "latency":
        best = best_partition(costs, objective)
        certificate = Certificate(seconds=best.seconds, bound_seconds=best.bound_seconds)
        return _Choice(
            costs, best.spans, why_left_out(costs, best, objective, 1.0), certificate, rows
        )
    chosen = best_rate(tables, costs.workload.slots, rows)
    certificate = Certificate(seconds=chosen.seconds, bound_seconds=chosen.bound_seconds)
    share = chosen.grouping.groups / costs.workload.slots
    left_out = why_left_out(chosen.costs, chosen.partition, objective, share)
    spans = chosen.partition.spans
    return _Choice(chosen.costs, spans, left_out, certificate, chosen.grouping.rows)


def _by_method(
    costs: CostTable, objective: Objective, method: Method
) -> tuple[tuple[Span, ...], tuple[LeftOut, ...]]:
    """The spans of a baseline, and the devices that it does not use."""
    if costs.workload.head_at_source:
        raise InputError(f"{method} knows no head at the source; plan without --method")
    spans = baseline(costs, method, objective)
    hosts = [span.device for span in spans]
    for host in hosts:
        name = costs.devices[host].name
        if hosts.count(host) > 1:
            raise PlanError(
                f"{method} gives {name} {hosts.count(host)} stages, a device runs one; "
                "plan without --method"
            )
    unused = [device.name for i, device in enumerate(costs.devices) if i not in hosts]
    reason = f"{method} does not use it"
    return spans, costs.left_out + tuple(LeftOut(device=name, reason=reason) for name in unused)


def _bottleneck(pace: Pace, grouping: Grouping) -> str:
    """The slowest stage or link, and how many slots would keep it busy."""
    per = "token" if grouping.rows == 1 else f"step of {grouping.rows}"
    text = f"{pace.slowest}, {pace.slowest_seconds * 1000:.2f} ms per {per}"
    if grouping.groups < pace.full_groups:
        text += f"; {grouping.rows * pace.full_groups} slots would fill the chain"
    return text


def _unsupported(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """What the runtime cannot do yet, by name."""
    is_split = len(stages) > 1 and stages[0].device == stages[-1].device
    return ("two stages on the source",) if is_split else ()


def _check(what: str, value: int, least: int, most: int | None, limit: str) -> None:
    if value < least:
        raise InputError(f"{what} {value} is too small; give at least {least}")
    if most is not None and value > most:
        raise InputError(f"{what} {value} is more than {limit}, {most}; give at most {most}")

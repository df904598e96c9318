"""Make a plan: manifest and profile in, stages and their predicted cost out.

    manifest ─┐
              ├─► cost table ─► partition ─► plan
    profile ──┘

Pure: the same values give the same plan, with no clock, file or device involved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from edgeshard.errors import InputError, PlanError
from edgeshard.planner.alternatives import one_device
from edgeshard.planner.baselines import Method, baseline
from edgeshard.planner.costs import CostTable, build_costs
from edgeshard.planner.left_out import why_left_out
from edgeshard.planner.memory import stage_memory
from edgeshard.planner.partition import Span, best_partition
from edgeshard.planner.units import Workload
from edgeshard.schemas.common import Activation, Objective
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
    batch: int = 1,
    activation: Activation = "fp32",
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
        batch: sequences that a decode step takes together.
        activation: how hidden states travel between stages.

    Raises:
        InputError: an argument is out of range, or the profile is not usable.
        PlanError: nothing fits, or the source was not measured.
    """
    if decode_context is None:
        decode_context = min(prompt_tokens + (new_tokens or NEW_TOKENS) // 2, context)
    _check("context", context, 1, model.max_context, f"the context of {model.name}")
    _check("slots", slots, 1, None, "")
    _check("prompt tokens", prompt_tokens, 1, context, "the planned context")
    _check("decode context", decode_context, 0, context, "the planned context")
    _check("new tokens", new_tokens, 0, context - prompt_tokens, "what the prompt leaves")
    _check("batch", batch, 1, slots, "the slots")
    workload = Workload(
        context, slots, prompt_tokens, decode_context, new_tokens, batch, activation
    )
    for place in _misfits(model, profile):
        raise InputError(f"the profile contradicts {model.name}: {place}; run `esc profile` again")
    costs = build_costs(model, profile, source, workload)
    spans, left_out, certificate = _choose(costs, objective, method)
    stages = _stages(costs, spans)
    way_in = costs.entry_seconds
    token_seconds = way_in + sum(stage.decode_seconds + stage.hop_seconds for stage in stages)
    first_token_seconds = way_in + _prefill_seconds(costs, spans, stages)
    busiest_seconds, busiest = _busiest(costs, spans, stages)
    if not busiest_seconds > 0:
        raise InputError("the profile says that every stage takes 0 s; run `esc profile` again")
    mean_seconds = _mean_seconds(token_seconds, first_token_seconds, workload)
    full_slots = batch * math.ceil(mean_seconds / busiest_seconds - 1e-9)
    if slots < full_slots:
        busiest += f"; {full_slots} slots would fill the chain"
    return Plan(
        model=model_digest,
        objective=objective,
        source=source,
        context=context,
        slots=slots,
        prompt_tokens=prompt_tokens,
        stages=stages,
        token_seconds=token_seconds,
        first_token_seconds=first_token_seconds,
        tokens_per_second=min(slots / mean_seconds, batch / busiest_seconds),
        bottleneck=busiest,
        one_device=one_device(costs),
        left_out=left_out,
        certificate=certificate,
        new_tokens=new_tokens,
        batch=batch,
        activation=activation,
    )


def costs_of(profile: Profile, plan: Plan, model: ModelManifest) -> CostTable:
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
    )
    return build_costs(model, profile, plan.source, workload)


def _misfits(model: ModelManifest, profile: Profile) -> Iterator[str]:
    """Units that were measured as something that the manifest says they are not."""
    kinds = {unit.structure: unit.kind for unit in model.units}
    for device in profile.devices:
        for unit in device.units:
            kind = kinds.get(unit.structure, unit.kind)
            if kind != unit.kind:
                yield (
                    f"{device.name} measured structure {unit.structure[:19]} as {unit.kind}, "
                    f"the manifest has it as {kind}"
                )


def _choose(
    costs: CostTable, objective: Objective, method: Method | None
) -> tuple[tuple[Span, ...], tuple[LeftOut, ...], Certificate | None]:
    """The spans, why other devices have none, and how good that is; baselines prove nothing."""
    if method is None:
        best = best_partition(costs, objective)
        certificate = Certificate(seconds=best.seconds, bound_seconds=best.bound_seconds)
        return best.spans, why_left_out(costs, best, objective), certificate
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
    left_out = costs.left_out + tuple(LeftOut(device=name, reason=reason) for name in unused)
    return spans, left_out, None


def _mean_seconds(token_seconds: float, first_token_seconds: float, workload: Workload) -> float:
    """Per token of the answer, where the answer's length is known; else that of a decode step."""
    decode_share, prefill_share = workload.shares
    return decode_share * token_seconds + prefill_share * first_token_seconds


def _check(what: str, value: int, least: int, most: int | None, limit: str) -> None:
    if value < least:
        raise InputError(f"{what} {value} is too small; give at least {least}")
    if most is not None and value > most:
        raise InputError(f"{what} {value} is more than {limit}, {most}; give at most {most}")


def _stages(costs: CostTable, spans: tuple[Span, ...]) -> tuple[Stage, ...]:
    stages = []
    for span, following in itertools.zip_longest(spans, spans[1:]):
        device = costs.devices[span.device]
        provider = device.providers[span.provider]
        units = slice(span.start, span.stop)
        hop, busy, prefill_hop = _hop(costs, span, following)
        stages.append(
            Stage(
                device=device.name,
                provider=provider.provider,
                start=span.start,
                stop=span.stop,
                decode_seconds=device.step_overhead_seconds + sum(provider.decode_seconds[units]),
                prefill_seconds=device.step_overhead_seconds + sum(provider.prefill_seconds[units]),
                hop_seconds=hop,
                hop_busy_seconds=busy,
                prefill_hop_seconds=prefill_hop,
                memory=stage_memory(costs, span.device, span.provider, span.start, span.stop),
            )
        )
    return tuple(stages)


def _hop(costs: CostTable, span: Span, following: Span | None) -> tuple[float, float, float]:
    """Seconds from a span to the next, or back: a token's, the part that is busy, the prompt's."""
    if following is None:
        back = float(costs.return_seconds[span.device])
        return back, 0.0, back
    tables = (costs.hop_seconds, costs.hop_busy_seconds, costs.prefill_hop_seconds)
    hop, busy, prefill = (float(table[span.device, following.device]) for table in tables)
    return hop, busy, prefill


def _prefill_seconds(costs: CostTable, spans: tuple[Span, ...], stages: tuple[Stage, ...]) -> float:
    """From the first stage's start to the first token's arrival at the source."""
    compute = sum(stage.prefill_seconds for stage in stages)
    pairs = itertools.pairwise(spans)
    hops = sum(float(costs.prefill_hop_seconds[a.device, b.device]) for a, b in pairs)
    return compute + hops + float(costs.return_seconds[spans[-1].device])


def _busiest(
    costs: CostTable, spans: tuple[Span, ...], stages: tuple[Stage, ...]
) -> tuple[float, str]:
    """Seconds of the slowest stage or link for one token, and its name."""
    decode_share, prefill_share = costs.workload.shares
    found = [
        (
            decode_share * stage.decode_seconds + prefill_share * stage.prefill_seconds,
            f"stage {index} on {stage.device}",
        )
        for index, stage in enumerate(stages)
    ]
    busy = costs.busy_seconds
    found += [
        (
            float(busy[left.device, right.device]),
            f"link {costs.devices[left.device].name} -> {costs.devices[right.device].name}",
        )
        for left, right in itertools.pairwise(spans)
    ]
    seconds, name = max(found, key=lambda pair: pair[0])
    return seconds, f"{name}, {seconds * 1000:.2f} ms per token"

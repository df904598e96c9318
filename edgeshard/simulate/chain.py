"""A chain as the simulator sees it: how long each stage computes and each hop takes.

source ─entry─► stage 0 ─hop─► stage 1 ─hop─► … ─► last stage ─hop─► source

compute of n positions   decode_seconds for a step of the chain's rows, others by the row cost;
                         prompt_seconds · n / prompt_tokens for a part of a prompt, and never less
                         than a token's step
busy of n positions      straight through the two known points, one position and a whole prompt
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from edgeshard.planner.costs import CostTable
from edgeshard.planner.hosts import Span
from edgeshard.planner.predict import stage_seconds
from edgeshard.schemas.plan import Plan, Stage


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to the next stage, or from the last one to the source.

    Attributes:
        latency_seconds: added to every frame; keeps nothing waiting.
        busy_seconds: for which a frame of one position keeps the link.
        busy_each_seconds: more for each further position.
    """

    latency_seconds: float
    busy_seconds: float
    busy_each_seconds: float

    def busy(self, num_positions: int) -> float:
        """Seconds for which a frame keeps the link."""
        return self.busy_seconds + self.busy_each_seconds * (num_positions - 1)


@dataclass(frozen=True, slots=True)
class SimulatedStage:
    """A stage: its device, its compute, and the hop behind it.

    Attributes:
        prompt_seconds: compute of a whole prompt of the chain's `prompt_tokens`.
    """

    device: str
    decode_seconds: float
    prompt_seconds: float
    hop: Hop


@dataclass(frozen=True, slots=True)
class SimulatedChain:
    """Stages in the order in which a token passes them; a device may come up more than once.

    Attributes:
        entry_seconds: from the coordinator to stage 0.
        prompt_tokens: length of the prompt that `prompt_seconds` are of.
        rows: sequences of the decode step that `decode_seconds` are of.
    """

    source: str
    entry_seconds: float
    prompt_tokens: int
    stages: tuple[SimulatedStage, ...]
    rows: int = 1

    def compute_seconds(
        self, stage: int, num_positions: int, *, is_prompt: bool, row_cost: float = 1.0
    ) -> float:
        """Seconds that a stage computes a step.

        Args:
            stage: its index.
            num_positions: of the step; one for each row of a decode step.
            is_prompt: whether they are part of one sequence's prompt.
            row_cost: what each row after the first adds, as a share of what it takes alone.
        """
        times = self.stages[stage]
        alone = times.decode_seconds / (1 + row_cost * (self.rows - 1))
        if not is_prompt:
            return alone * (1 + row_cost * (num_positions - 1))
        return max(alone, times.prompt_seconds * num_positions / self.prompt_tokens)

    def target(self, stage: int) -> str:
        """The device that a stage sends to."""
        return self.stages[stage + 1].device if stage + 1 < len(self.stages) else self.source


def chain_of_plan(plan: Plan) -> SimulatedChain:
    """The chain that a plan predicts.

    A plan without `hop_busy_seconds` and `prefill_hop_seconds` counts each hop as busy all the
    time, and as long for a prompt as for a token.
    """
    predicted = sum(stage.decode_seconds + stage.hop_seconds for stage in plan.stages)
    return SimulatedChain(
        source=plan.source,
        entry_seconds=max(0.0, plan.token_seconds - predicted),
        prompt_tokens=plan.prompt_tokens,
        stages=tuple(
            SimulatedStage(
                device=stage.device,
                decode_seconds=stage.decode_seconds,
                prompt_seconds=stage.prefill_seconds,
                hop=_hop_of_stage(stage, plan.prompt_tokens, plan.batch),
            )
            for stage in plan.stages
        ),
        rows=plan.batch,
    )


def chain_of_spans(costs: CostTable, spans: Sequence[Span]) -> SimulatedChain:
    """The chain of spans that the planner or a baseline chose."""
    stages = []
    for span, following in itertools.zip_longest(spans, spans[1:]):
        device = costs.devices[span.device]
        units = device.providers[span.provider].prefill_seconds[span.start : span.stop]
        if following is None:
            hop = Hop(costs.return_seconds[span.device], 0.0, 0.0)
        else:
            token, busy, prompt = (
                table[span.device][following.device]
                for table in (costs.hop_seconds, costs.hop_busy_seconds, costs.prefill_hop_seconds)
            )
            workload = costs.workload
            hop = _hop(token, busy, prompt, workload.prompt_tokens, workload.batch)
        stages.append(
            SimulatedStage(
                device=device.name,
                decode_seconds=stage_seconds(costs, span),
                prompt_seconds=device.step_overhead_seconds + sum(units),
                hop=hop,
            )
        )
    return SimulatedChain(
        source=costs.devices[costs.source].name,
        entry_seconds=costs.entry_seconds,
        prompt_tokens=costs.workload.prompt_tokens,
        stages=tuple(stages),
        rows=costs.workload.batch,
    )


def _hop_of_stage(stage: Stage, prompt_tokens: int, rows: int) -> Hop:
    token = stage.hop_seconds
    busy = token if stage.hop_busy_seconds is None else stage.hop_busy_seconds
    prompt = token if stage.prefill_hop_seconds is None else stage.prefill_hop_seconds
    return _hop(token, busy, prompt, prompt_tokens, rows)


def _hop(token: float, busy: float, prompt: float, prompt_tokens: int, rows: int) -> Hop:
    """The hop of a decode step of `rows` and of a prompt; each row has a position in the frame."""
    latency, one = token - busy, busy / rows
    each = (prompt - latency - one) / (prompt_tokens - 1) if prompt_tokens > 1 else one
    return Hop(max(0.0, latency), one, max(0.0, each))

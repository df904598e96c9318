"""The plan file: which device runs which units, and what that is predicted to cost.

source ─► stage 0 [0, a) ─► stage 1 [a, b) ─► … ─► last stage [z, num_units) ─► source
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgeshard.schemas.accuracy import LinkAccuracy
from edgeshard.schemas.common import (
    Activation,
    Count,
    Digest,
    Name,
    Objective,
    Positive,
    Precision,
    Schema,
    Seconds,
    Transfers,
)


class MemoryUse(Schema, frozen=True, kw_only=True):
    """What a stage is predicted to hold, in bytes, beside the device's limit."""

    baseline_bytes: Count
    weights_bytes: Count
    kv_bytes: Count
    workspace_bytes: Count
    limit_bytes: Count

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.baseline_bytes + self.weights_bytes + self.kv_bytes + self.workspace_bytes


class Stage(Schema, frozen=True, kw_only=True):
    """Units `[start, stop)` on a device with a provider.

    Attributes:
        decode_seconds: predicted compute of one decode step.
        prefill_seconds: predicted compute of the whole prompt.
        hop_seconds: predicted time of one decode step's frame to the next stage, or of the token
            back to the source for the last one.
        hop_busy_seconds: the part of it that the next frame has to wait for.
        prefill_hop_seconds: predicted time of the whole prompt's hidden states to the next stage,
            or of the first token back. Files from before these two were written lack them.
        activation: how hidden states travel to the next stage; None: as the plan says for all.
        model: digest of the manifest whose units it runs; None: the plan's.
        precision: of its weights; None in a plan of one model.
    """

    device: Name
    provider: str
    start: Count
    stop: Positive
    decode_seconds: Seconds
    prefill_seconds: Seconds
    hop_seconds: Seconds
    hop_busy_seconds: Seconds | None = None
    prefill_hop_seconds: Seconds | None = None
    activation: Activation | None = None
    model: Digest | None = None
    precision: Precision | None = None
    memory: MemoryUse


class Alternative(Schema, frozen=True, kw_only=True):
    """What another arrangement would do, and why it was not taken.

    Attributes:
        missing_bytes: memory that the device lacks for it; 0 where it would fit.
    """

    device: Name
    decode_seconds: Seconds
    missing_bytes: Count


class LeftOut(Schema, frozen=True, kw_only=True):
    """A device that the plan does not use, and why."""

    device: Name
    reason: str


class Certificate(Schema, frozen=True, kw_only=True):
    """How good the plan is for its objective, and how good any plan could be.

    Attributes:
        seconds: what was minimised, of this plan: the time of a token, or, for throughput, the time
            between tokens of all requests together.
        bound_seconds: no plan is better than this; equal to `seconds` where this one is proven to
            be optimal.
    """

    seconds: Seconds
    bound_seconds: Seconds

    @property
    def is_optimal(self) -> bool:
        """Whether no plan is better."""
        return self.bound_seconds >= self.seconds

    @property
    def gap(self) -> float:
        """How much better another plan could be at most, as a share of this one."""
        return 0.0 if self.is_optimal else 1.0 - self.bound_seconds / self.seconds


class Plan(Schema, frozen=True, kw_only=True):
    """Stages in the order of the chain, with what they are predicted to do.

    Attributes:
        model: digest of the manifest; where stages differ in precision, of the first one's.
        prompt_tokens: prompt length that the predictions assume.
        token_seconds: predicted time from one token to the next of a single request.
        tokens_per_second: predicted rate with enough requests in flight.
        bottleneck: the slowest stage or link, in words.
        certificate: proof of the objective; None in files of before there was one.
        new_tokens: answer length that the objective weighs prefill by; 0: decode steps alone count.
        batch: sequences that a decode step takes together.
        groups: of slots that step together, which the rate assumes; 0: not said.
        activation: how hidden states travel between stages.
        accuracy: what that was measured to cost; None: nothing, or it was not measured.
        head_at_source: no output token leaves the source.
        transfers: whether devices compute while they send and receive, which the rate assumes.
        unsupported: what this plan asks for that the runtime cannot do; it is not deployed then.
        one_device: what one device alone would do, memory aside; best first.
        company: where there are several slots, devices that compute a row of a step of several
            otherwise than the same row alone.
    """

    format: Literal["edgeshard.plan/1"] = "edgeshard.plan/1"
    model: Digest
    objective: Objective
    source: Name
    context: Positive
    slots: Positive
    prompt_tokens: Positive
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1)]
    token_seconds: Seconds
    first_token_seconds: Seconds
    tokens_per_second: float
    bottleneck: str
    one_device: tuple[Alternative, ...]
    left_out: tuple[LeftOut, ...]
    certificate: Certificate | None = None
    new_tokens: Count = 0
    batch: Positive = 1
    groups: Count = 0
    activation: Activation = "fp32"
    accuracy: LinkAccuracy | None = None
    head_at_source: bool = False
    transfers: Transfers = "overlapped"
    unsupported: tuple[str, ...] = ()
    company: tuple[Name, ...] = ()

    @property
    def links(self) -> tuple[Activation, ...]:
        """How hidden states travel from each stage to the next; one less than there are stages."""
        return tuple(stage.activation or self.activation for stage in self.stages[:-1])

    @property
    def depends_on_company(self) -> bool:
        """Whether an answer may depend on who else is served: rows that differ share steps."""
        return bool(self.company) and self.groups < self.slots

    @property
    def models(self) -> tuple[Digest, ...]:
        """The model of each stage."""
        return tuple(stage.model or self.model for stage in self.stages)

    @property
    def request_seconds(self) -> float:
        """Predicted time of a request from its prompt to its last token; 1 token at least."""
        return self.first_token_seconds + max(0, self.new_tokens - 1) * self.token_seconds

"""Why a plan is as it is: time and memory of each stage, what is left over, what more would give.

"What more would give" plans anew with one change at the bottleneck, so it counts other cuts too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from edgeshard.errors import EdgeShardError
from edgeshard.planner.memory import MIB
from edgeshard.schemas.common import changed
from edgeshard.schemas.plan import MemoryUse, Plan
from edgeshard.schemas.profile import Profile

MBIT = 1e6 / 8
GIB = 2**30


@dataclass(frozen=True, slots=True)
class StageAccount:
    """A stage and its hop.

    Attributes:
        target: the device that it sends to.
        slack_seconds: how much longer it could take without being the slowest, per token.
        free_bytes: memory that the device has left.
    """

    device: str
    target: str
    start: int
    stop: int
    decode_seconds: float
    prefill_seconds: float
    hop_seconds: float
    slack_seconds: float
    memory: MemoryUse
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Improvement:
    """What the best plan would do with one thing more."""

    what: str
    token_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything about a plan that its table does not say."""

    stages: tuple[StageAccount, ...]
    bottleneck: str
    improvements: tuple[Improvement, ...]


def explain(plan: Plan, profile: Profile, replan: Callable[[Profile], Plan]) -> Explanation:
    """Explain a plan.

    Args:
        plan: what to explain.
        profile: what it was made from.
        replan: makes the best plan for another profile and the same wishes.
    """
    work: defaultdict[str, float] = defaultdict(float)  # of a device that may run two stages
    is_blocking = plan.transfers == "blocking"
    received = 0.0
    for stage in plan.stages:
        work[stage.device] += stage.decode_seconds
        if is_blocking:
            work[stage.device] += received + stage.hop_seconds
            received = stage.hop_seconds
    links = [0.0 if is_blocking else stage.hop_busy_seconds or 0.0 for stage in plan.stages]
    slowest = max([*work.values(), *links])
    targets = [stage.device for stage in plan.stages[1:]] + [plan.source]
    accounts = tuple(
        StageAccount(
            device=stage.device,
            target=target,
            start=stage.start,
            stop=stage.stop,
            decode_seconds=stage.decode_seconds,
            prefill_seconds=stage.prefill_seconds,
            hop_seconds=stage.hop_seconds,
            slack_seconds=slowest - work[stage.device],
            memory=stage.memory,
            free_bytes=stage.memory.limit_bytes - stage.memory.total_bytes,
        )
        for stage, target in zip(plan.stages, targets, strict=True)
    )
    return Explanation(accounts, plan.bottleneck, _improvements(plan, profile, accounts, replan))


def _improvements(
    plan: Plan,
    profile: Profile,
    accounts: tuple[StageAccount, ...],
    replan: Callable[[Profile], Plan],
) -> tuple[Improvement, ...]:
    """One Mbit/s on the slowest hop; one GiB on the fullest device and on the slowest stage's."""
    tried = []
    if len(accounts) > 1:
        slow = max(accounts, key=lambda account: account.hop_seconds)
        what = f"1 Mbit/s more between {slow.device} and {slow.target}"
        tried.append((what, _faster(profile, slow.device, slow.target)))
    full = min(accounts, key=lambda account: account.free_bytes)
    late = min(accounts, key=lambda account: account.slack_seconds)
    for name in dict.fromkeys((full.device, late.device)):
        tried.append((f"1 GiB more on {name}", _larger(profile, name)))
    found = []
    for what, other in tried:
        try:
            made = replan(other)
        except EdgeShardError:  # a profile that could be planned for must not become unusable here
            continue
        found.append(Improvement(what, made.token_seconds, made.tokens_per_second))
    return tuple(found)


def _faster(profile: Profile, one: str, other: str) -> Profile:
    return changed(
        profile,
        links=tuple(
            changed(link, bytes_per_second=link.bytes_per_second + MBIT)
            if {link.source, link.target} == {one, other}
            else link
            for link in profile.links
        ),
    )


def _larger(profile: Profile, name: str) -> Profile:
    return changed(
        profile,
        devices=tuple(
            changed(device, memory_bytes=device.memory_bytes + GIB)
            if device.name == name
            else device
            for device in profile.devices
        ),
    )


def explanation_text(plan: Plan, explanation: Explanation) -> str:
    """The explanation, a line for each thing."""
    lines = []
    for index, one in enumerate(explanation.stages):
        memory = one.memory
        lines += [
            f"stage {index} on {one.device}, units [{one.start}, {one.stop}): "
            f"{_ms(one.decode_seconds)} ms a token ({_ms(one.slack_seconds)} ms of slack), "
            f"{_ms(one.prefill_seconds)} ms for the prompt; {_ms(one.hop_seconds)} ms to "
            f"{one.target}",
            f"    memory: weights {_mib(memory.weights_bytes)} + KV {_mib(memory.kv_bytes)} + "
            f"runtime {_mib(memory.baseline_bytes)} + workspace {_mib(memory.workspace_bytes)} = "
            f"{_mib(memory.total_bytes)} of {_mib(memory.limit_bytes)} MiB, "
            f"{_mib(one.free_bytes)} free",
        ]
    lines.append(f"bottleneck: {explanation.bottleneck}")
    lines += [
        f"{more.what}: {_ms(more.token_seconds)} ms per token instead of "
        f"{_ms(plan.token_seconds)}, {more.tokens_per_second:.1f} tokens/s instead of "
        f"{plan.tokens_per_second:.1f}"
        for more in explanation.improvements
    ]
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f}"

"""What `esc plan` says of a plan, as text, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeshard.errors import InputError
from edgeshard.plan_page import plan_page
from edgeshard.planner import plan_table
from edgeshard.planner.batches import CostTables
from edgeshard.planner.cheapest import EXACT
from edgeshard.planner.costs import CostTable
from edgeshard.planner.explain import Explanation, explain, explanation_text
from edgeshard.planner.front import Choice, front
from edgeshard.planner.replicas import Fleet, replicas
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile


class Report:
    """A plan with everything that was asked about it.

    `tables` are what it was made from, `rows` the sequences of a step where they were given.
    """

    def __init__(
        self,
        plan: Plan,
        profile: Profile,
        tables: CostTables,
        replan: Callable[[Profile], Plan],
        rows: int | None = None,
    ) -> None:
        costs = tables.of(plan.batch)
        assert costs is not None  # the plan was made from it
        self._plan, self._profile, self._costs, self._replan = plan, profile, costs, replan
        self._tables, self._rows = tables, rows

    def text(self, with_explanation: bool, with_front: bool, with_replicas: bool) -> str:
        """The table, and the parts that were asked for below it."""
        parts = [plan_table(self._plan)]
        if with_explanation:
            parts.append(explanation_text(self._plan, self._explanation()))
        if with_front:
            parts.append(_front_text(self._costs, front(self._costs)))
        if with_replicas:
            parts.append(_replicas_text(self._replicas()))
        return "\n".join(parts)

    def json(self, with_explanation: bool, with_front: bool, with_replicas: bool) -> str:
        """One object: `plan`, and `explanation`, `front` and `replicas` where asked for."""
        value: dict[str, Any] = {"plan": self._plan}
        if with_explanation:
            value["explanation"] = self._explanation()
        if with_front:
            value["front"] = [_choice(self._costs, one) for one in front(self._costs)]
        if with_replicas:
            value["replicas"] = self._replicas()
        return json.dumps(msgspec.to_builtins(value), indent=2)

    def write_page(self, path: Path, model: str) -> None:
        """Draw the plan.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            path.write_text(plan_page(self._plan, self._explanation(), model), "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    def _replicas(self) -> tuple[Fleet, ...]:
        return replicas(self._tables, self._plan.slots, self._rows)

    def _explanation(self) -> Explanation:
        return explain(self._plan, self._profile, self._replan)


def what_if_text(before: Plan, after: Plan) -> str:
    """Two plans beside each other, as text."""
    return (
        f"{plan_table(after)}\n"
        f"as it is: {before.token_seconds * 1e3:.2f} ms per token, "
        f"{before.tokens_per_second:.1f} tokens/s over "
        f"{', '.join(stage.device for stage in before.stages)}\n"
        f"what if:  {after.token_seconds * 1e3:.2f} ms per token, "
        f"{after.tokens_per_second:.1f} tokens/s over "
        f"{', '.join(stage.device for stage in after.stages)}\n"
        "nothing was written"
    )


def what_if_json(before: Plan, after: Plan) -> str:
    """Two plans as one object."""
    return json.dumps(msgspec.to_builtins({"as_it_is": before, "what_if": after}), indent=2)


def _choice(costs: CostTable, one: Choice) -> dict[str, Any]:
    return {
        "devices": [costs.devices[span.device].name for span in one.spans],
        "stages": [[span.start, span.stop] for span in one.spans],
        "token_seconds": one.token_seconds,
        "slowest_seconds": one.slowest_seconds,
        "is_proven": one.is_proven,
    }


def _front_text(costs: CostTable, choices: tuple[Choice, ...]) -> str:
    slots, batch = costs.workload.slots, costs.workload.batch
    with_slots = f"tokens/s with {slots} slots"
    lines = [f"devices  ms per token  slowest ms  most tokens/s  {with_slots}"]
    for one in choices:
        names = " ".join(
            f"{costs.devices[span.device].name}[{span.start},{span.stop})" for span in one.spans
        )
        lines.append(
            f"{one.num_devices:7d}  {one.token_seconds * 1e3:12.2f}  "
            f"{one.slowest_seconds * 1e3:10.2f}  {batch / one.slowest_seconds:13.1f}  "
            f"{min(slots / one.token_seconds, batch / one.slowest_seconds):{len(with_slots)}.1f}  "
            f"{names}" + ("" if one.is_proven else "  (not proven)")
        )
    if len({one.num_devices for one in choices}) == 1 and choices[0].num_devices == 1:
        lines.append("one device is best in everything")
    return "\n".join(lines) + "\n"


def _replicas_text(fleets: tuple[Fleet, ...]) -> str:
    lines = []
    for fleet in fleets:
        chains = " | ".join(", ".join(chain) for chain in fleet.devices)
        noun = "chain" if len(fleet.devices) == 1 else "chains"
        lines.append(
            f"{len(fleet.devices)} {noun}: {fleet.tokens_per_second:.1f} tokens/s in all, at most "
            f"{fleet.bound_tokens_per_second:.1f} on any devices: {chains}"
        )
    best = max(fleets, key=lambda fleet: fleet.tokens_per_second)
    if len(best.devices) > 1:
        gain = best.tokens_per_second / fleets[0].tokens_per_second
        lines.append(
            f"{len(best.devices)} replicas do {gain:.2f} times what one chain does; a cluster file "
            "has one chain, so give each replica a cluster file of its own"
        )
    else:
        lines.append("more chains do not do more than one")
    limit = max(fleet.bound_tokens_per_second for fleet in fleets)
    lines.append(
        f"not proven best: {limit / best.tokens_per_second - 1:.1%} more may be possible"
        if limit > best.tokens_per_second * (1 + EXACT)
        else "proven best of these numbers of chains"
    )
    return "\n".join(lines) + "\n"

"""The plan as text."""

from __future__ import annotations

import pytest

from edgeshard.planner.table import HEADER, plan_rows, plan_summary, plan_table
from edgeshard.schemas.common import changed
from edgeshard.schemas.plan import Alternative, LeftOut, MemoryUse, Plan, Stage

MIB = 2**20


def stage(device: str, start: int, stop: int) -> Stage:
    return Stage(
        device=device,
        provider="CPUExecutionProvider",
        start=start,
        stop=stop,
        decode_seconds=0.0025,
        prefill_seconds=0.02,
        hop_seconds=0.0005,
        memory=MemoryUse(
            baseline_bytes=50 * MIB,
            weights_bytes=40 * MIB,
            kv_bytes=30 * MIB,
            workspace_bytes=5 * MIB,
            limit_bytes=256 * MIB,
        ),
    )


PLAN = Plan(
    model="sha256:" + "0" * 64,
    objective="latency",
    source="laptop",
    context=2048,
    slots=2,
    prompt_tokens=128,
    stages=(stage("laptop", 0, 9), stage("pi", 9, 32)),
    token_seconds=0.0061,
    first_token_seconds=0.05,
    tokens_per_second=327.9,
    bottleneck="stage 0 on laptop, 2.50 ms per token; 3 slots would fill the chain",
    one_device=(
        Alternative(device="pi", decode_seconds=0.004, missing_bytes=0),
        Alternative(device="laptop", decode_seconds=0.005, missing_bytes=10 * MIB),
    ),
    left_out=(LeftOut(device="phone", reason="no link to it was measured"),),
)


def test_a_row_has_a_cell_for_every_heading() -> None:
    rows = plan_rows(PLAN)
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[0] == [
        "0",
        "laptop",
        "CPU",
        "[0, 9)",
        "40.0",
        "30.0",
        "125.0 / 256.0",
        "2.50",
        "20.00",
        "0.50",
    ]


def test_the_summary_says_rate_bottleneck_alternatives_and_who_was_left_out() -> None:
    assert plan_summary(PLAN) == [
        "latency: 6.10 ms per token (compute 5.00, hops 1.10), "
        "first token of a prompt of 128 after 50.00 ms",
        "327.9 tokens/s with 2 requests in flight",
        "bottleneck: stage 0 on laptop, 2.50 ms per token; 3 slots would fill the chain",
        "one device: pi alone would take 4.00 ms per token and has room",
        "one device: laptop alone would take 5.00 ms per token, but lacks 10.0 MiB",
        "left out: phone: no link to it was measured",
    ]


@pytest.mark.parametrize(
    ("groups", "start", "end"),
    [
        (1, "answers may depend on who else is served", "--batch 1 keeps them the same"),
        (
            2,
            "every request has steps of its own",
            "a larger --batch shares steps and gives that up",
        ),
    ],
)
def test_the_summary_says_whether_answers_depend_on_company(
    groups: int, start: str, end: str
) -> None:
    plan = changed(PLAN, groups=groups, company=("laptop", "pi"))
    (line,) = (line for line in plan_summary(plan) if line.startswith("company: "))
    assert line.startswith(f"company: {start}")
    assert "as laptop, pi compute a row of several otherwise than one alone" in line
    assert line.endswith(end)


def test_the_columns_of_the_table_align() -> None:
    header, first, second, empty, *summary = plan_table(PLAN).splitlines()
    assert empty == ""
    assert summary == plan_summary(PLAN)
    assert len(header) == len(first) == len(second)
    assert header.index("units") == first.index("[0, 9)") == second.index("[9, 32)")

"""The paper's testbed as costs: the trace's own sums, links as they are shaped."""

from __future__ import annotations

from collections import Counter

import pytest

from edgeshard.paper import testbed as data_file
from edgeshard.paper.testbed import (
    GIB,
    MODELS,
    TRACED,
    Setting,
    cost_table,
    devices,
    unit_bytes,
    unit_names,
    unit_seconds,
)


def test_the_testbed_has_15_devices_with_the_source_first() -> None:
    for source in ("agx-orin", "orin-nx"):
        kinds = devices(Setting(source=source))
        assert kinds[0] == source
        assert Counter(kinds) == {"agx-orin": 12, "orin-nx": 2, "rtx-3090": 1}


@pytest.mark.parametrize(
    ("kind", "total_ms"), [("orin-nx", 198.6), ("agx-orin", 174.0), ("rtx-3090", 26.1)]
)
def test_the_trace_sums_to_what_its_source_says(kind: str, total_ms: float) -> None:
    seconds = unit_seconds(TRACED, kind, 1.0)  # type: ignore[arg-type]  # a word of the list
    assert len(seconds) == 34
    assert sum(seconds) * 1e3 == pytest.approx(total_ms, abs=0.05)


@pytest.mark.parametrize(
    ("model", "gib"), [("llama2-7b", 25.1), ("llama2-13b", 48.5), ("llama2-70b", 257.0)]
)
def test_weights_are_those_of_the_model_in_fp32(model: str, gib: float) -> None:
    assert sum(unit_bytes(model)) / GIB == pytest.approx(gib, rel=0.002)  # type: ignore[arg-type]


def test_the_published_shape_gives_the_traces_bytes() -> None:
    """The formula of the models without a trace, on the model that has one."""
    shape = data_file.testbed()["architectures"][TRACED]
    hidden, ffn, kv = shape["hidden_size"], shape["ffn_size"], shape["kv_size"]
    block = 4 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn + 2 * hidden)
    assert unit_bytes(TRACED)[1] == pytest.approx(block, rel=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_every_unit_has_a_time_and_a_size(model: str) -> None:
    names = unit_names(model)  # type: ignore[arg-type]  # a word of the list
    assert len(names) == len(unit_bytes(model))  # type: ignore[arg-type]
    assert len(names) == len(unit_seconds(model, "agx-orin", 2.0))  # type: ignore[arg-type]


def test_a_batch_of_4_needs_half_a_second_over_the_slow_link() -> None:
    costs = cost_table(Setting(kinds=("agx-orin", "rtx-3090")))
    assert costs.hop_busy_seconds[0, 2] == pytest.approx(4 * 4096 * 4 * 8 / 1e6)
    assert costs.hop_busy_seconds[1, 2] == pytest.approx(4 * 4096 * 4 * 8 / 50e6)
    assert costs.hop_seconds[1, 2] - costs.hop_busy_seconds[1, 2] == pytest.approx(0.0021)
    assert costs.return_seconds[2] == pytest.approx(0.0021 + 4 * 4 * 8 / 1e6)
    assert costs.return_seconds[0] == costs.hop_seconds[1, 1] == 0.0


def test_the_data_say_where_they_come_from() -> None:
    data = data_file.testbed()
    assert set(data["reported"]) == {"latency_ms_per_token", "throughput_tokens_per_s"}
    for figures in data["reported"].values():
        for by_method in figures.values():
            for entry in by_method.values():
                assert entry["confidence"].startswith(("sourced", "recalled"))

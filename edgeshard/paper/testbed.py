"""The paper's testbed as cost tables: 12 AGX Orin, 2 Orin NX, one RTX 3090, shaped links.

    testbed.json ─► Setting (model, batch, source, links, factor) ─► CostTable of 15 devices

Times of Llama2-7B are a public trace; other models have the trace's mean block times a factor that
is calibrated once for the model (`calibrate.py`). Keys and values are in the memory that the file
already leaves unused on each device. The constant of each hop delays a frame and keeps no link
busy, and what comes back to the source is four bytes for each sequence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import mean
from typing import Any, Literal, get_args

import numpy as np

from edgeshard.planner.costs import CostTable, DeviceCosts, Seconds
from edgeshard.planner.units import ModelCosts, ProviderCosts, Workload

Model = Literal["llama2-7b", "llama2-13b", "llama2-70b"]
Kind = Literal["agx-orin", "orin-nx", "rtx-3090"]
MODELS: tuple[Model, ...] = get_args(Model)
TRACED: Model = "llama2-7b"
CLOUD: Kind = "rtx-3090"
GIB = 2**30
TOKEN_BYTES = 4
PROVIDER = "trace"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One experiment.

    Attributes:
        batch: sequences that travel together; the trace is of 4.
        source: kind of the device that owns the prompts.
        source_cloud_mbps: both ways between the source and the RTX 3090.
        other_mbps: of every other link.
        factor: of the trace's mean unit times, for models without a trace.
        kinds: devices beside the source; None: all that the testbed has.
    """

    model: Model = TRACED
    batch: int = 4
    source: Kind = "agx-orin"
    source_cloud_mbps: float = 1.0
    other_mbps: float = 50.0
    factor: float = 1.0
    kinds: tuple[Kind, ...] | None = None


@cache
def testbed() -> dict[str, Any]:
    """The data file; what its fields mean and where they come from is said in it."""
    text = (resources.files("edgeshard.paper") / "testbed.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def devices(setting: Setting) -> tuple[Kind, ...]:
    """Kinds of all devices, the source first."""
    if setting.kinds is not None:
        return (setting.source, *setting.kinds)
    types = testbed()["device_types"]
    everything: list[Kind] = [kind for kind in get_args(Kind) for _ in range(types[kind]["count"])]
    everything.remove(setting.source)
    return (setting.source, *everything)


def cost_table(setting: Setting) -> CostTable:
    """What everything costs in an experiment; device 0 is the source."""
    kinds = devices(setting)
    activation = testbed()["architectures"][setting.model]["hidden_size"] * 4 * setting.batch
    latency = testbed()["models"][TRACED]["hop_overhead_ms"] / 1e3
    elsewhere = 1.0 - np.eye(len(kinds))
    rate = _bytes_per_second(setting, kinds)
    busy = elsewhere * activation / rate
    hop = busy + elsewhere * latency
    return CostTable(
        source=0,
        workload=Workload(context=128, slots=1, prompt_tokens=1, decode_context=0),
        unit_names=unit_names(setting.model),
        models=(ModelCosts("fp32", (0,) * len(unit_names(setting.model)), ()),),
        devices=tuple(
            _device(setting, kind, f"{kind}-{kinds[:index].count(kind)}")
            for index, kind in enumerate(kinds)
        ),
        hop_seconds=hop,
        hop_busy_seconds=busy,
        prefill_hop_seconds=hop,
        return_seconds=(elsewhere * (latency + TOKEN_BYTES * setting.batch / rate))[:, 0],
        left_out=(),
    )


def unit_names(model: Model) -> tuple[str, ...]:
    """Embedding, blocks, head."""
    num_blocks = testbed()["architectures"][model]["num_blocks"]
    return ("embedding", *(f"block.{index}" for index in range(num_blocks)), "head")


def unit_bytes(model: Model) -> tuple[int, ...]:
    """fp32 weights of each unit; those of the traced model are the trace's."""
    if model == TRACED:
        return tuple(int(gib * GIB) for gib in testbed()["models"][TRACED]["unit_memory_gib"])
    shape = testbed()["architectures"][model]
    hidden, ffn, kv = shape["hidden_size"], shape["ffn_size"], shape["kv_size"]
    block = 4 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn + 2 * hidden)
    ends = 4 * shape["vocab_size"] * hidden
    return (ends, *(block,) * shape["num_blocks"], ends)


def unit_seconds(model: Model, kind: Kind, factor: float) -> tuple[float, ...]:
    """Time of each unit for a batch: the trace, or its mean block times the factor."""
    trace = [ms / 1e3 for ms in testbed()["models"][TRACED]["unit_time_ms"][kind]]
    if model == TRACED:
        return tuple(factor * seconds for seconds in trace)
    block = factor * mean(trace[1:-1])
    num_blocks = testbed()["architectures"][model]["num_blocks"]
    return (factor * trace[0], *(block,) * num_blocks, factor * trace[-1])


def _bytes_per_second(setting: Setting, kinds: tuple[Kind, ...]) -> Seconds:
    """Rate of every link, axes `[from, to]`."""
    rate = np.full((len(kinds), len(kinds)), setting.other_mbps * 1e6 / 8)
    clouds = [index for index, kind in enumerate(kinds) if kind == CLOUD]
    rate[0, clouds] = rate[clouds, 0] = setting.source_cloud_mbps * 1e6 / 8
    return rate


def _device(setting: Setting, kind: Kind, name: str) -> DeviceCosts:
    seconds = unit_seconds(setting.model, kind, setting.factor)
    limit = int(testbed()["device_types"][kind]["usable_gib"] * GIB)
    return DeviceCosts(
        name=name,
        step_overhead_seconds=0.0,
        loopback_seconds=0.0,
        baseline_bytes=0,
        workspace_bytes=0,
        limit_bytes=limit,
        providers=(ProviderCosts(PROVIDER, seconds, seconds, unit_bytes(setting.model)),),
    )

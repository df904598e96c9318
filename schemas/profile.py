"""The profile file: what agents measured of units, devices and links.

All times are wall-clock seconds. A stage's decode step is predicted as its device's
`step_overhead_seconds` plus the sum of its units; a hop as the link's latency plus bytes over rate.
"""

from __future__ import annotations

from typing import Literal

from edgeshard.schemas.common import (
    Count,
    Digest,
    Name,
    Positive,
    Precision,
    Schema,
    Seconds,
    Target,
    UnitKind,
)


class Timing(Schema, frozen=True, kw_only=True):
    """A measured duration with its spread: median, 10th and 90th percentile of `num_samples`."""

    median_seconds: Seconds
    low_seconds: Seconds
    high_seconds: Seconds
    num_samples: Positive


class DecodePoint(Schema, frozen=True, kw_only=True):
    """One new token for each of `batch` sequences that hold `context` positions already."""

    context: Count
    batch: Positive
    time: Timing


class PrefillPoint(Schema, frozen=True, kw_only=True):
    """`num_tokens` new tokens of one sequence, `past` positions held already."""

    num_tokens: Positive
    past: Count
    time: Timing


class UnitProfile(Schema, frozen=True, kw_only=True):
    """What one unit of a structure costs on a device with a provider.

    Attributes:
        resident_bytes: measured growth of resident memory for one unit's weights, prepacked copies
            included, keys and values not.
        sampled: units of the real model that were measured to check the representative.
        sample_deviation: largest relative difference of a sampled unit's decode time to the
            representative's; None where none was sampled.
        rows_alike: whether a row of a decode step of several has the bits of the same row alone, so
            that nobody's tokens depend on who else is served; None: not measured.
    """

    structure: Digest
    kind: UnitKind
    provider: str
    target: Target
    precision: Precision
    decode: tuple[DecodePoint, ...]
    prefill: tuple[PrefillPoint, ...]
    resident_bytes: Count
    sampled: tuple[Name, ...] = ()
    sample_deviation: float | None = None
    rows_alike: bool | None = None


class DeviceProfile(Schema, frozen=True, kw_only=True):
    """What a device is and what units cost there.

    Attributes:
        memory_bytes: most that a stage may hold there, its runtime included.
        baseline_bytes: resident memory of a worker that has loaded nothing.
        workspace_bytes: resident memory beside weights and KV at the longest measured step.
        step_overhead_seconds: fixed cost of one step of a stage, whatever its units.
        runtime: ONNX Runtime version; numerics class together with `isa` and the provider.
    """

    name: Name
    runtime: str
    isa: str
    threads: Positive
    providers: tuple[str, ...]
    memory_bytes: Positive
    baseline_bytes: Count
    workspace_bytes: Count
    step_overhead_seconds: Seconds
    units: tuple[UnitProfile, ...]


class LinkProfile(Schema, frozen=True, kw_only=True):
    """What it costs to send from one device to another, through the real data sockets.

    Attributes:
        latency_seconds: one way, smallest frame.
        bytes_per_second: rate of large frames.
    """

    source: Name
    target: Name
    latency_seconds: Seconds
    bytes_per_second: float
    time: Timing


class Profile(Schema, frozen=True, kw_only=True):
    """Everything the planner knows about devices and links."""

    format: Literal["edgeshard.profile/1"] = "edgeshard.profile/1"
    models: tuple[Digest, ...]
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]

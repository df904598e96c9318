"""What one device alone would do: the answer to whether a split is worth it."""

from __future__ import annotations

import math

from edgeshard.planner.costs import CostTable
from edgeshard.planner.memory import missing_bytes, stage_memory
from edgeshard.schemas.plan import Alternative


def one_device(costs: CostTable) -> tuple[Alternative, ...]:
    """Each device with the whole model on its fastest provider, as if it were the source.

    Memory decides nothing, it is reported as missing bytes. Devices whose profile lacks a unit are
    passed over. Best first.
    """
    found = []
    for index, device in enumerate(costs.devices):
        seconds, provider = min(
            (sum(provider.decode_seconds), number)
            for number, provider in enumerate(device.providers)
        )
        if math.isinf(seconds):
            continue
        memory = stage_memory(costs, index, provider, 0, costs.num_units)
        found.append(
            Alternative(
                device=device.name,
                decode_seconds=device.step_overhead_seconds + seconds + 2 * device.loopback_seconds,
                missing_bytes=missing_bytes(memory),
            )
        )
    return tuple(sorted(found, key=lambda alternative: alternative.decode_seconds))

"""What units cost on a device, and which providers count."""

from __future__ import annotations

import msgspec

from edgeshard.planner.units import (
    SharedBlob,
    Workload,
    provider_costs,
    shared_blobs,
    unmeasured,
)
from edgeshard.schemas.common import Target
from edgeshard.schemas.model import ModelManifest, Variant
from edgeshard.schemas.targets import TENSORRT
from support.planner_cases import CPU, GPU, MIB, digest, make_device, make_model, measured

WORKLOAD = Workload(context=64, slots=1, prompt_tokens=64, decode_context=64)


def test_units_of_one_structure_share_a_measurement() -> None:
    model = make_model(3)
    times = (1.0, 2.0, 2.0, 2.0, 3.0)
    seconds = dict(zip((unit.structure for unit in model.units), times, strict=True))
    (costs,) = provider_costs([model], make_device("a", measured(model, seconds)), WORKLOAD, 0)
    assert costs.decode_seconds == (1.0, 2.0, 2.0, 2.0, 3.0)
    assert costs.prefill_seconds == (8.0, 16.0, 16.0, 16.0, 24.0)


def test_resident_bytes_are_at_least_the_blobs() -> None:
    model = make_model(1, weights_bytes=[3 * MIB, 5 * MIB, 3 * MIB])
    units = measured(model, 1.0, resident_bytes=4 * MIB)
    (costs,) = provider_costs([model], make_device("a", units), WORKLOAD, 0)
    assert costs.weights_bytes == (4 * MIB, 5 * MIB, 4 * MIB)


def test_providers_keep_the_order_of_the_device() -> None:
    model = make_model()
    device = make_device("a", measured(model, 1.0, GPU) + measured(model, 2.0, CPU))
    found = provider_costs([model], device, WORKLOAD, 0)
    assert [costs.provider for costs in found] == [GPU, CPU]


def test_a_provider_that_lacks_a_structure_does_not_count() -> None:
    model = make_model()
    device = make_device("a", measured(model, 1.0, GPU)[:-1] + measured(model, 2.0, CPU))
    assert [costs.provider for costs in provider_costs([model], device, WORKLOAD, 0)] == [CPU]


def test_beside_the_source_the_embedding_need_not_be_measured() -> None:
    model = make_model()
    device = make_device("b", measured(model, 1.0)[1:])
    assert len(provider_costs([model], device, WORKLOAD, 1)) == 1
    assert provider_costs([model], device, WORKLOAD, 0) == ()


def test_measurements_of_another_precision_or_target_do_not_count() -> None:
    model = make_model()
    device = make_device("a", measured(model, 1.0))
    int4 = msgspec.structs.replace(model, precision="int4")
    portable = msgspec.structs.replace(model, target="portable")
    assert provider_costs([int4], device, WORKLOAD, 0) == ()
    assert provider_costs([portable], device, WORKLOAD, 0) == ()


def test_what_is_unmeasured_is_counted_with_the_next_step() -> None:
    model = make_model()
    text = unmeasured(model, make_device("a", measured(model, 1.0)[:2]), WORKLOAD, 0)
    assert "2 of the 3 unit structures of tiny (target ort, precision fp32)" in text
    assert "run `esc profile`" in text


def test_shared_blobs_are_pairs_of_neighbouring_users() -> None:
    assert shared_blobs(make_model(3, tied_bytes=7)) == (SharedBlob(0, 4, 7),)
    assert shared_blobs(make_model(3)) == ()


def _variant(model: ModelManifest, target: Target, context: int | None) -> Variant:
    units = tuple(
        msgspec.structs.replace(unit, structure=digest(f"{target} {unit.kind}"))
        for unit in model.units
    )
    kv = msgspec.structs.replace(model.kv, layout="copy", context=context)
    return Variant(target=target, opset=17, min_runtime="1.17", kv=kv, units=units)


def test_a_provider_is_planned_with_the_target_that_it_runs() -> None:
    model = make_model()
    variant = _variant(model, "tensorrt", WORKLOAD.context)
    model = msgspec.structs.replace(model, variants=(variant,))
    units = measured(model, 2.0, CPU) + measured(model.view("tensorrt"), 1.0, TENSORRT)
    found = provider_costs([model], make_device("a", units), WORKLOAD, 0)

    assert {c.provider: c.decode_seconds[0] for c in found} == {CPU: 2.0, TENSORRT: 1.0}


def test_a_target_made_for_another_context_does_not_count_and_says_so() -> None:
    model = msgspec.structs.replace(make_model(), target="portable")
    variant = _variant(model, "tensorrt", 2 * WORKLOAD.context)
    model = msgspec.structs.replace(model, variants=(variant,))
    device = make_device("a", measured(model.view("tensorrt"), 1.0, TENSORRT))

    assert provider_costs([model], device, WORKLOAD, 0) == ()
    text = unmeasured(model, device, WORKLOAD, 0)
    assert f"{TENSORRT} cannot run tiny" in text
    assert "compile with another --target or --context" in text

"""Which target a provider runs, and what a mismatch says."""

from __future__ import annotations

import msgspec
import pytest

from edgeshard.errors import InputError
from edgeshard.schemas.common import Target
from edgeshard.schemas.model import ModelManifest, Variant
from edgeshard.schemas.targets import CPU, CUDA, TENSORRT, check_target, target_for, view_for
from support.planner_cases import make_model

OPENVINO = "OpenVINOExecutionProvider"


def _model(*targets: Target) -> ModelManifest:
    model = msgspec.structs.replace(make_model(), target=targets[0], activations="float32")
    variants = tuple(
        Variant(target=t, opset=17, min_runtime="1.12", kv=model.kv, units=model.units)
        for t in targets[1:]
    )
    return msgspec.structs.replace(model, variants=variants)


@pytest.mark.parametrize(
    ("provider", "targets", "chosen"),
    [
        (CPU, ("portable", "ort"), "ort"),
        (CPU, ("tensorrt", "portable"), "portable"),
        (TENSORRT, ("ort", "tensorrt"), "tensorrt"),
        (OPENVINO, ("ort", "portable"), "portable"),
    ],
)
def test_a_provider_takes_the_best_it_runs(
    provider: str, targets: tuple[Target, ...], chosen: Target
) -> None:
    assert target_for(_model(*targets), provider) == chosen
    assert view_for(_model(*targets), provider).targets == (chosen,)


def test_cuda_takes_the_fused_operators_in_16_bits() -> None:
    model = msgspec.structs.replace(_model("portable", "ort", "tensorrt"), activations="float16")

    assert target_for(model, CUDA) == "ort"


def test_a_mismatch_names_both_sides_and_the_option() -> None:
    words = (
        f"{OPENVINO} runs portable, tiny has ort and tensorrt; .* --target ort,tensorrt,portable"
    )
    with pytest.raises(InputError, match=words):
        target_for(_model("ort", "tensorrt"), OPENVINO)
    with pytest.raises(InputError, match=r"runs tensorrt, the shard is ort; .* --target tensorrt"):
        check_target("ort", "float32", TENSORRT)


def test_a_type_without_kernels_is_refused_by_name() -> None:
    model = msgspec.structs.replace(_model("ort"), activations="bfloat16")

    assert target_for(model, CUDA) == "ort"
    with pytest.raises(InputError, match=f"{CPU} has no bfloat16 kernels for ort; run on {CUDA}"):
        target_for(model, CPU)
    with pytest.raises(InputError, match="no bfloat16 kernels"):
        check_target("ort", "bfloat16", CPU)


def test_cuda_takes_float32_where_standard_operators_are_there() -> None:
    """Its fused attention has no kernel in float32; the CPU would compute it, out of sight."""
    words = f"{CUDA} has no float32 kernels for ort; compile with .*--activations float16"

    assert target_for(_model("ort", "portable"), CUDA) == "portable"
    assert view_for(_model("ort", "portable"), CUDA).targets == ("portable",)
    with pytest.raises(InputError, match=words):
        target_for(_model("ort"), CUDA)
    with pytest.raises(InputError, match=words):
        check_target("ort", "float32", CUDA)
    check_target("ort", "float16", CUDA)
    check_target("portable", "float32", CUDA)


def test_keys_and_values_in_int8_are_for_the_cpu() -> None:
    model = msgspec.structs.replace(_model("ort"), activations="float16")
    model = msgspec.structs.replace(model, kv=msgspec.structs.replace(model.kv, dtype="int8"))
    words = f"{CUDA} keeps no keys and values in int8; run on {CPU}, or compile without --kv"

    assert target_for(model, CPU) == "ort"
    with pytest.raises(InputError, match=words):
        target_for(model, CUDA)
    with pytest.raises(InputError, match=words):
        check_target("ort", "float16", CUDA, "int8")


def test_another_target_is_no_view() -> None:
    with pytest.raises(KeyError):
        _model("ort").view("portable")

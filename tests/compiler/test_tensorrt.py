"""The `tensorrt` target against TensorRT's published support lists; TensorRT itself is not run.

The lists are in `tensorrt_support.json`, with their source.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from edgeshard.artifacts.fuse import fuse
from edgeshard.compiler.lower_tensorrt import MAX_STEP
from edgeshard.schemas.common import Precision
from edgeshard.schemas.shard import ShardManifest
from support.tiny_llama import CONTEXT, CompiledModel, compiled

SUPPORT = json.loads(Path(__file__).with_name("tensorrt_support.json").read_text("utf-8"))
PRECISIONS: list[Precision] = ["fp32", "fp16", "int8"]
FLOAT_OPERATORS = {
    *("Add", "Concat", "Div", "Expand", "Gather", "Greater", "Identity", "MatMul", "Mul"),
    *("ReduceMean", "Reshape", "ScatterElements", "Shape", "Sigmoid", "Softmax", "Split", "Sqrt"),
    *("Sub", "Transpose", "Unsqueeze", "Where"),
}
OPERATORS: dict[Precision, set[str]] = {
    "fp32": FLOAT_OPERATORS,
    "fp16": FLOAT_OPERATORS - {"Identity"} | {"Cast"},
    "int8": FLOAT_OPERATORS | {"DequantizeLinear"},
}
# TensorRT's names; before 10.0 it narrows int64 to int32 by itself (docs/operators.md, first note).
NAMES = {
    TensorProto.FLOAT: {"FP32"},
    TensorProto.FLOAT16: {"FP16"},
    TensorProto.INT8: {"INT8"},
    TensorProto.INT64: {"INT64", "INT32"},
    TensorProto.BOOL: {"BOOL"},
}
FREE = {"S": MAX_STEP, "P": MAX_STEP}


def _whole(precision: Precision) -> tuple[CompiledModel, ShardManifest, onnx.ModelProto]:
    model = compiled("multi_head", precision, "tensorrt")
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    graph = onnx.load(str(model.store.path(shard.graph)), load_external_data=False)
    return model, shard, graph


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_operators_are_these(precision: Precision) -> None:
    _, _, model = _whole(precision)

    assert {node.op_type for node in model.graph.node} == OPERATORS[precision]
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 17)}
    assert model.ir_version == 8


@pytest.mark.parametrize("release", SUPPORT["releases"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_operator_is_listed_with_the_type_that_it_gets(
    precision: Precision, release: str
) -> None:
    """The first input's type; `Where` and `Gather` are listed by what they hand on."""
    model, shard, graph = _whole(precision)
    whole = onnx.load(str(model.store.path(shard.graph)))
    listed = SUPPORT["releases"][release]
    inferred = onnx.shape_inference.infer_shapes(whole, strict_mode=True, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type

    assert graph.opset_import[0].version <= listed["max_opset"]
    for node in graph.graph.node:
        handed_on = node.input[1] if node.op_type == "Where" else node.input[0]
        names = NAMES[types[handed_on]]
        assert names & set(listed["operators"][node.op_type]["types"]), (node.op_type, names)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_must_be_constant_is(precision: Precision) -> None:
    """Axes of `Unsqueeze` and shapes of `Reshape`; scales and zero points of `DequantizeLinear`."""
    _, _, model = _whole(precision)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Unsqueeze", "DequantizeLinear", "Split", "Reshape"):
            assert node.input[1] in constants, node.name
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 2  # no zero point: TensorRT wants zero


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_the_step_is_free_and_every_free_input_has_a_profile(precision: Precision) -> None:
    _, shard, model = _whole(precision)
    free: dict[str, list[int | str]] = {}
    for value in model.graph.input:
        shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if any(isinstance(axis, str) for axis in shape):
            free[value.name] = shape
    options = shard.provider_options

    assert {axis for shape in free.values() for axis in shape if isinstance(axis, str)} == {
        "S",
        "P",
    }
    assert all("past" not in name for name in free)
    for which, step in (("min", 1), ("opt", 1), ("max", min(MAX_STEP, CONTEXT))):
        found = dict(part.split(":") for part in options[f"trt_profile_{which}_shapes"].split(","))
        expected = {
            name: "x".join(str(step if isinstance(axis, str) else axis) for axis in shape)
            for name, shape in free.items()
        }
        assert found == expected


def test_engines_and_timings_are_kept_and_types_are_allowed() -> None:
    options = {precision: _whole(precision)[1].provider_options for precision in PRECISIONS}

    for found in options.values():
        assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "True"
        assert found["trt_engine_cache_path"] == "engines"
        assert found["trt_timing_cache_path"] == "timings"
    assert [options[p]["trt_fp16_enable"] for p in PRECISIONS] == ["False", "True", "False"]
    assert [options[p]["trt_int8_enable"] for p in PRECISIONS] == ["False", "False", "True"]


def test_a_middle_shard_has_a_profile_for_what_it_takes() -> None:
    model = compiled("multi_head", "fp32", "tensorrt")
    shard, _ = fuse(model.store, model.manifest, model.blob, 2, 3)

    assert shard.provider_options["trt_profile_max_shapes"] == (
        f"hidden.2:1x{CONTEXT}x{shard.hidden_size},position_ids:1x{CONTEXT}"
    )

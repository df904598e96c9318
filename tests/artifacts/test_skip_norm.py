"""Add and norm become one operator, where and only where they are a residual."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeshard.artifacts.skip_norm import NORM, SkipNormPass


def _model(*, constant: bool = False, norm_reads: str = "sum") -> onnx.ModelProto:
    """sum = x + y; normed = norm(sum); out = sum * normed."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 8]) for n in ("x", "y")]
    outs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 8])]
    gamma = numpy_helper.from_array(np.arange(1, 9, dtype=np.float32), "gamma")
    bias = numpy_helper.from_array(np.ones((1, 1, 8), np.float32), "bias")
    other = "bias" if constant else "y"
    nodes = [
        helper.make_node("Add", ["x", other], ["sum"], name="add"),
        helper.make_node(NORM, [norm_reads, "gamma"], ["normed"], name="norm", epsilon=1e-5),
        helper.make_node("Mul", ["sum", "normed"], ["out"], name="mul"),
    ]
    graph = helper.make_graph(nodes, "g", ends, outs, [gamma, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _run(model: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(1)
    feeds = {name: generator.standard_normal((1, 1, 8)).astype(np.float32) for name in "xy"}
    return np.asarray(session.run(["out"], feeds)[0])


def test_a_residual_and_its_norm_are_joined() -> None:
    joined = SkipNormPass().call(_model())

    assert _operators(joined) == [f"Skip{NORM}", "Mul"]
    node = joined.graph.node[0]
    assert list(node.input) == ["x", "y", "gamma"]
    assert (node.output[0], node.output[3]) == ("normed", "sum")
    assert ("com.microsoft", 1) in {(item.domain, item.version) for item in joined.opset_import}


def test_joining_computes_the_same() -> None:
    np.testing.assert_allclose(_run(SkipNormPass().call(_model())), _run(_model()), rtol=1e-5)


def test_the_given_model_is_left_alone() -> None:
    model = _model()
    before = model.SerializeToString(deterministic=True)

    SkipNormPass().call(model)

    assert model.SerializeToString(deterministic=True) == before


def test_a_bias_is_no_residual() -> None:
    model = _model(constant=True)

    assert SkipNormPass().call(model) == model


def test_a_norm_of_something_else_stays() -> None:
    model = _model(norm_reads="x")

    assert SkipNormPass().call(model) == model


def test_joining_twice_changes_nothing_more() -> None:
    once = SkipNormPass().call(_model())

    assert SkipNormPass().call(once) == once

"""The graphs that are handed on: what they are made of, and that plain tools take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gguf import GGMLQuantizationType

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.schemas.common import Precision, Target
from support.gguf_file import write_gguf
from support.tiny_llama import CONTEXT, VARIANTS, CompiledModel, compiled

FLOAT_OPERATORS = {
    *("Add", "Concat", "Div", "Gather", "Greater", "Identity", "MatMul", "Mul", "Range"),
    *("ReduceMean", "Reshape", "Shape", "Sigmoid", "Softmax", "Split", "Sqrt", "Sub"),
    *("Transpose", "Unsqueeze", "Where"),
}
OPERATORS: dict[Precision, set[str]] = {
    "fp32": FLOAT_OPERATORS,
    "int8": FLOAT_OPERATORS | {"Cast", "DequantizeLinear"},
    "int4": FLOAT_OPERATORS | {"Cast", "DequantizeLinear", "Floor", "ReduceSum"},
    "mixed": FLOAT_OPERATORS | {"BitShift", "BitwiseOr", "Cast", "DequantizeLinear"},
    "stored": FLOAT_OPERATORS | {"Cast", "DequantizeLinear", "Floor", "ReduceSum"},
}
OPSETS: dict[Precision, int] = {"fp32": 17, "int8": 21, "int4": 21, "mixed": 21, "stored": 21}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    folder = tmp_path_factory.mktemp("stored")
    file = write_gguf(folder / "tiny.gguf", {"blk.0.ffn_down.weight": GGMLQuantizationType.Q4_1})
    store = Store(folder / "store")
    result = compile_model(file.path, store, target="portable")
    return CompiledModel(store, result.manifest, result.blob)


def _model(precision: Precision, target: Target, stored: CompiledModel) -> CompiledModel:
    return stored if precision == "stored" else compiled("grouped", precision, target)


def _paths(model: CompiledModel) -> list[Path]:
    """Every unit's graph, then the whole model's."""
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    return [model.store.path(b) for b in (*(u.graph for u in model.manifest.units), shard.graph)]


@pytest.mark.parametrize("precision", OPSETS)
def test_portable_uses_these_standard_operators(
    precision: Precision, stored: CompiledModel
) -> None:
    model = _model(precision, "portable", stored)
    graphs = [onnx.load(str(path), load_external_data=False) for path in _paths(model)]

    assert {node.op_type for graph in graphs for node in graph.graph.node} == OPERATORS[precision]
    assert {node.domain for graph in graphs for node in graph.graph.node} == {""}
    imports = {(item.domain, item.version) for graph in graphs for item in graph.opset_import}
    assert imports == {("", OPSETS[precision])}
    assert model.manifest.opset == OPSETS[precision]


@pytest.mark.parametrize("precision", OPSETS)
def test_the_checker_passes_portable_graphs_in_full(
    precision: Precision, stored: CompiledModel
) -> None:
    for path in _paths(_model(precision, "portable", stored)):
        onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "mixed"])
def test_plain_onnxruntime_runs_every_unit_where_it_lies(
    precision: Precision, target: Target
) -> None:
    model = compiled("grouped", precision, target)
    value: np.ndarray = np.array([[5, 6, 7]], np.int64)
    for unit in model.manifest.units:
        session = ort.InferenceSession(
            str(model.store.path(unit.graph)), providers=["CPUExecutionProvider"]
        )
        names = [item.name for item in session.get_inputs()]
        cache = CONTEXT if target == "ort" else 0
        known = {
            "seqlens_k": np.array([2], np.int32),
            "total_sequence_length": np.array([3], np.int32),
            "position_ids": np.arange(3)[None],
            "logit_positions": np.array([2], np.int64),
        }
        feeds = {names[0]: value} | {name: known[name] for name in names[1:] if name in known}
        for name in names:
            if "past" in name:
                feeds[name] = np.zeros((1, 2, cache, 16), np.float32)
        value = session.run([_result(session)], feeds)[0]
        assert np.isfinite(value).all()
    with model.chain() as chain:
        np.testing.assert_allclose(value[:, 0], chain.step(0, [5, 6, 7]), rtol=1e-4, atol=1e-4)


def _result(session: ort.InferenceSession) -> str:
    """The output that is no cache."""
    (name,) = [item.name for item in session.get_outputs() if "present" not in item.name]
    return str(name)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_quantised_portable_graphs_load_in_every_variant(
    variant: str, precision: Precision
) -> None:
    """The zero points were once sized by one matrix, too few for a packed projection."""
    with compiled(variant, precision, "portable").chain() as chain:
        assert np.isfinite(chain.step(0, [1, 2, 3])).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_both_targets_agree(precision: Precision) -> None:
    """The `ort` kernels round activations to 8 bits, the portable ones do not."""
    text = list(range(3, 40))
    with (
        compiled("grouped", precision, "ort").chain() as first,
        compiled("grouped", precision, "portable").chain() as second,
    ):
        fast = first.step(0, text, every_position=True)
        plain = second.step(0, text, every_position=True)

    assert np.sqrt(np.mean((fast - plain) ** 2)) < 0.1 * plain.std()

"""Scales in a file: the same bits, no file left, no page held, and without room as before."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from edgeshard.artifacts.graph_check import read_graph
from edgeshard.runtime import loading, scale_file
from edgeshard.schemas.common import Precision
from edgeshard.system import HAS_FORGET
from support.tiny_llama import VOCAB, CompiledModel, compiled

TEXT = [int(token) for token in np.random.default_rng(2).integers(0, VOCAB, 16)]
QUANTISED: tuple[Precision, ...] = ("int4", "mixed")  # the latter has codes of 6 bits
MAKING = {"Cast", "BitShift", "BitwiseOr"}
linux_only = pytest.mark.skipif(not HAS_FORGET, reason="scales stay with ONNX Runtime here")


def _logits(model: CompiledModel) -> NDArray[np.float32]:
    with model.chain() as chain:
        whole = chain.step(0, TEXT, every_position=True).copy()
        return np.concatenate([whole[0], chain.step(len(TEXT), TEXT[:1])])


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _nothing(*_: object) -> None:
    return None


@linux_only
@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [(loading, "scale_file", _nothing), (scale_file, "reserve", _no_room)],
)
@pytest.mark.parametrize("precision", QUANTISED)
def test_logits_are_bit_equal_to_those_of_scales_that_onnx_runtime_made(
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    instead: Callable[..., None],
    precision: Precision,
) -> None:
    model = compiled("grouped", precision, "ort")
    found = _logits(model)
    monkeypatch.setattr(module, name, instead)
    np.testing.assert_array_equal(found, _logits(model))


@linux_only
@pytest.mark.parametrize("precision", QUANTISED)
def test_every_product_of_a_quantised_graph_is_made_and_no_node_is_left_of_it(
    precision: Precision,
) -> None:
    model = compiled("grouped", precision, "ort")
    block = model.manifest.units[1]
    graph = read_graph(model.store.path(block.graph))
    made = scale_file.scale_file(model.store, graph)
    assert made is not None
    assert {node.op_type for node in graph.graph.node} >= {"Cast", "Mul", "MatMulNBits"}
    changed = made.graph()
    products = [node for node in changed.graph.node if node.op_type == "MatMulNBits"]
    constants = {tensor.name for tensor in changed.graph.initializer}
    assert products
    assert all({*node.input[1:]} <= constants for node in products)
    assert not [node for node in changed.graph.node if node.op_type in MAKING]
    made.settle()


@linux_only
@pytest.mark.parametrize("precision", QUANTISED)
def test_the_file_is_gone_and_its_pages_are_not_held_once_a_session_is_open(
    precision: Precision,
) -> None:
    model = compiled("grouped", precision, "ort")
    with model.chain() as chain:
        mapped = [
            one
            for one in psutil.Process().memory_maps(grouped=False)
            if str(model.store.root.resolve() / "incoming") in one.path
        ]
        assert mapped
        assert sum(one.rss for one in mapped) == 0
        assert not list((model.store.root / "incoming").iterdir())
        assert np.isfinite(chain.step(0, TEXT)).all()


def test_a_graph_without_such_products_needs_no_file() -> None:
    model = compiled("grouped", "fp32", "ort")
    graph = read_graph(model.store.path(model.manifest.units[1].graph))
    assert scale_file.scale_file(model.store, graph) is None

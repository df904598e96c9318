"""Fusing joins graphs by name and copies no weight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgeshard.artifacts.fuse import concatenate, fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, InputError
from support.tiny_llama import NUM_BLOCKS, CompiledModel, compiled

NUM_UNITS = NUM_BLOCKS + 2
RANGES = [(start, stop) for start in range(NUM_UNITS) for stop in range(start + 1, NUM_UNITS + 1)]


def _bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in (store.root / "blobs").iterdir())


def _copy(model: CompiledModel, folder: Path) -> CompiledModel:
    """The model's units in a store of their own, which a test may spoil."""
    store = Store(folder)
    for blob in (b for unit in model.manifest.units for b in (unit.graph, *unit.weights)):
        store.put(model.store.read(blob), blob.suffix)
    return CompiledModel(store, model.manifest, model.blob)


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_shard_points_into_its_units_own_blobs(start: int, stop: int) -> None:
    model = compiled("grouped", "int4")
    units = model.manifest.units[start:stop]

    shard, blob = fuse(model.store, model.manifest, model.blob, start, stop)

    assert model.store.shard(blob) == shard
    assert set(shard.weights) == {weight for unit in units for weight in unit.weights}
    assert len(shard.weights) == len({weight.digest for weight in shard.weights})
    graph = onnx.load_model_from_string(model.store.read(shard.graph)).graph
    inputs, outputs = ({v.name for v in values} for values in (graph.input, graph.output))
    assert ("token_ids" in inputs) == shard.has_embedding == (start == 0)
    assert ("logits" in outputs) == shard.has_head == (stop == NUM_UNITS)
    assert {name for name in inputs if "past" in name} == {
        f"block.{index}.past_{part}" for index in shard.blocks for part in ("key", "value")
    }
    assert {n for n in inputs if n.startswith("hidden")} == (
        {f"hidden.{start}"} if start else set()
    )
    ends = set() if stop == NUM_UNITS else {f"hidden.{stop}"}
    assert {n for n in outputs if n.startswith("hidden")} == ends
    names = [node.name for node in graph.node]
    assert len(names) == len(set(names))


def test_fusing_writes_kilobytes_and_no_weights(tmp_path: Path) -> None:
    model = _copy(compiled("nine_heads"), tmp_path)
    weights = {b.digest: b.size_bytes for u in model.manifest.units for b in u.weights}
    before = _bytes(model.store)

    for start, stop in ((0, 2), (2, 4), (4, 5)):
        fuse(model.store, model.manifest, model.blob, start, stop)

    assert 0 < _bytes(model.store) - before < 64 * 1024 < sum(weights.values()) / 10


def test_the_same_range_gives_the_same_shard() -> None:
    model = compiled("grouped")

    first = fuse(model.store, model.manifest, model.blob, 1, 4)

    assert fuse(model.store, model.manifest, model.blob, 1, 4) == first


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, NUM_UNITS + 1), (2, 2), (3, 1), (9, 10)])
def test_a_range_beyond_the_model_is_refused(start: int, stop: int) -> None:
    model = compiled("grouped")

    with pytest.raises(InputError, match=rf"units \[{start}, {stop}\) .* the model's {NUM_UNITS}"):
        fuse(model.store, model.manifest, model.blob, start, stop)


def test_a_changed_unit_graph_is_refused(tmp_path: Path) -> None:
    model = _copy(compiled("grouped"), tmp_path)
    graph = model.manifest.units[2].graph
    model.store.path(graph).unlink()
    model.store.path(graph).write_bytes(b"x" * graph.size_bytes)

    with pytest.raises(ArtifactError, match=graph.digest):
        fuse(model.store, model.manifest, model.blob, 1, 4)


def test_fusing_needs_no_torch() -> None:
    model = compiled("grouped")
    program = f"""
import sys
for name in ("torch", "transformers", "optimum", "gguf", "safetensors"):
    sys.modules[name] = None  # importing it fails
from pathlib import Path
from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
store = Store(Path({str(model.store.root)!r}))
shard, blob = fuse(store, *store.model({model.manifest.name!r}), 0, {NUM_UNITS})
print(blob.digest)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    _, expected = fuse(model.store, model.manifest, model.blob, 0, NUM_UNITS)
    assert done.stdout.strip() == expected.digest


def _unit(first: str, last: str) -> onnx.ModelProto:
    """last = first + first, with a constant and an input that all units share."""
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
        for name in (first, last, "length")
    }
    constant = helper.make_tensor("constant", TensorProto.FLOAT, [2], [1, 2])
    nodes = [
        helper.make_node("Add", [first, "constant"], [f"{last}/sum"], name=f"{last}/Add"),
        helper.make_node("Mul", [f"{last}/sum", "length"], [last], name=f"{last}/Mul"),
    ]
    inputs = [values[first], values["length"]]
    graph = helper.make_graph(nodes, last, inputs, [values[last]], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_value_that_a_later_graph_reads_becomes_an_inner_one() -> None:
    fused = concatenate([_unit("a", "b"), _unit("b", "c")])

    assert [value.name for value in fused.graph.input] == ["a", "length"]
    assert [value.name for value in fused.graph.output] == ["c"]
    assert [tensor.name for tensor in fused.graph.initializer] == ["constant"]
    assert [node.name for node in fused.graph.node] == ["b/Add", "b/Mul", "c/Add", "c/Mul"]
    onnx.checker.check_model(fused, full_check=True)


def test_one_graph_stays_as_it_is() -> None:
    plain = _unit("a", "b")

    fused = concatenate([plain])

    assert list(fused.graph.node) == list(plain.graph.node)
    assert fused.opset_import == plain.opset_import

"""A graph from elsewhere reaches nothing but the shard's own blobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgeshard.artifacts.graph_check import check_graph, read_graph
from edgeshard.errors import ArtifactError
from edgeshard.schemas.common import Blob
from support.tiny_llama import compiled

BLOB = Blob(digest="sha256:" + "a" * 64, size_bytes=4096, suffix=".safetensors")


def _external(**entries: str) -> TensorProto:
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(tensor: TensorProto | None = None) -> onnx.ModelProto:
    """y = x + weight."""
    weight = tensor or _external(location=BLOB.filename, offset="64", length="16")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "weight"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))


def _pointing(**changes: str) -> onnx.ModelProto:
    plain = {"location": BLOB.filename, "offset": "64", "length": "16"}
    return _model(_external(**(plain | changes)))


def _twice() -> onnx.ModelProto:
    model = _pointing()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return model


def _without(key: str) -> onnx.ModelProto:
    model = _pointing()
    entries = model.graph.initializer[0].external_data
    kept = [item for item in entries if item.key != key]
    del entries[:]
    entries.extend(kept)
    return model


def _with_attribute(**attributes: object) -> onnx.ModelProto:
    model = _model()
    node = helper.make_node("Constant", [], ["c"], **attributes)
    model.graph.node.append(node)
    return model


def _disguised_graph() -> onnx.ModelProto:
    model = _with_attribute(value=helper.make_graph([], "inner", [], []))
    model.graph.node[1].attribute[0].type = onnx.AttributeProto.FLOAT
    return model


def _tensor_list() -> onnx.ModelProto:
    model = _with_attribute(value_int=1)
    model.graph.node[1].attribute[0].tensors.append(_external(location="/etc/passwd"))
    return model


def _function() -> onnx.ModelProto:
    model = _model()
    node = helper.make_node("Identity", ["a"], ["b"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], opset))
    return model


def _domain(name: str) -> onnx.ModelProto:
    model = _model()
    model.graph.node[0].domain = name
    return model


def _sparse() -> onnx.ModelProto:
    model = _model()
    model.graph.sparse_initializer.add()
    return model


def _too_many_nodes() -> onnx.ModelProto:
    model = _model()
    model.graph.node.extend(model.graph.node[0] for _ in range(200_000))
    return model


def _inner(tensor: TensorProto) -> onnx.ModelProto:
    return _with_attribute(value=tensor)


HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "absolute path": (lambda: _pointing(location="/etc/passwd"), "'/etc/passwd'"),
    "path upwards": (lambda: _pointing(location=f"../{BLOB.filename}"), r"'\.\./"),
    "other blob": (lambda: _pointing(location="b" * 64 + ".safetensors"), "not a blob"),
    "empty location": (lambda: _pointing(location=""), "not a blob"),
    "in memory": (lambda: _pointing(location="*/_ORT_MEM_ADDR_/*"), "not a blob"),
    "beyond the end": (lambda: _pointing(offset="4088"), "ends at byte 4104 .* has 4096"),
    "far beyond": (lambda: _pointing(offset=str(2**64)), "ends at byte"),
    "long": (lambda: _pointing(length=str(2**63)), "ends at byte"),
    "negative offset": (lambda: _pointing(offset="-16"), "offset '-16'"),
    "negative length": (lambda: _pointing(length="-16"), "length '-16'"),
    "no number": (lambda: _pointing(offset="0x40"), "offset '0x40'"),
    "other digits": (lambda: _pointing(offset="\u0664"), "offset"),
    "no offset": (lambda: _without("offset"), "external data keys"),
    "no location": (lambda: _without("location"), "external data keys"),
    "unknown key": (lambda: _pointing(checksum="0"), "external data keys .*checksum"),
    "location twice": (_twice, "external data keys"),
    "function": (_function, "1 functions"),
    "subgraph": (lambda: _inner(helper.make_graph([], "inner", [], [])), "holds a graph"),
    "disguised subgraph": (_disguised_graph, "holds a graph"),
    "tensor in an attribute": (
        lambda: _inner(_external(location=BLOB.filename, offset="0", length="16")),
        "not a blob",
    ),
    "tensors in an attribute": (_tensor_list, "external data keys"),
    "sparse": (_sparse, "sparse"),
    "unknown domain": (lambda: _domain("evil"), r"operator evil\.Add"),
    "aliased domain": (lambda: _domain("ai.onnx.ml"), r"operator ai\.onnx\.ml\.Add"),
    "too many nodes": (_too_many_nodes, "200001 nodes, at most 200000"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_graph_that_reaches_out_is_refused(case: str) -> None:
    make, named = HOSTILE[case]

    with pytest.raises(ArtifactError, match=named) as caught:
        check_graph(make(), [BLOB])

    assert "\n" not in str(caught.value)


def test_a_graph_within_its_blobs_passes() -> None:
    check_graph(_pointing(offset="4080"), [BLOB])  # up to the very last byte


def test_what_the_compiler_writes_passes() -> None:
    model = compiled("grouped", "int4", "portable")
    for unit in model.manifest.units:
        check_graph(onnx.load_model_from_string(model.store.read(unit.graph)), unit.weights)


def test_every_blob_that_a_unit_lists_is_needed() -> None:
    model = compiled("grouped", "int4", "portable")
    for unit in model.manifest.units:
        graph = onnx.load_model_from_string(model.store.read(unit.graph))
        for blob in unit.weights:
            others = [other for other in unit.weights if other != blob]
            with pytest.raises(ArtifactError, match=blob.filename):
                check_graph(graph, others)


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match="is no ONNX graph"):
        read_graph(path)

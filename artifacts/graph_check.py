"""What a shard's graph may hold: known operator domains, and weights within the shard's own blobs.

A graph is a program that came from elsewhere. It is checked before an inference session exists, so
that no path, no size and no operator library is believed because a file names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from edgeshard.errors import ArtifactError
from edgeshard.schemas.common import Blob

DOMAINS = {"", "com.microsoft"}
MAX_NODES = 200_000
_KEYS = {"location", "offset", "length"}


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without its weights.

    Raises:
        ArtifactError: it is no ONNX graph.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has an error of its own, which onnx does not name
        raise ArtifactError(f"{path} is no ONNX graph: {error}; compile again") from error


def check_graph(model: onnx.ModelProto, weights: Iterable[Blob]) -> None:
    """Refuse a graph that reaches beyond its blobs.

    Raises:
        ArtifactError: names the operator or tensor, and what is allowed.
    """
    sizes = {blob.filename: blob.size_bytes for blob in weights}
    if model.functions:
        raise ArtifactError(f"graph defines {len(model.functions)} functions; none are allowed")
    if len(model.graph.node) > MAX_NODES:
        raise ArtifactError(f"graph has {len(model.graph.node)} nodes, at most {MAX_NODES} allowed")
    for node in model.graph.node:
        if node.domain not in DOMAINS:
            raise ArtifactError(f"operator {node.domain}.{node.op_type} is of an unknown domain")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ArtifactError(f"operator {node.op_type} holds a graph; none are allowed")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ArtifactError(f"operator {node.op_type} holds a sparse tensor; none allowed")
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, {})
    for tensor in model.graph.initializer:
        _check_tensor(tensor, sizes)
    if model.graph.sparse_initializer:
        raise ArtifactError("graph holds sparse initializers; none are allowed")


def _check_tensor(tensor: onnx.TensorProto, sizes: dict[str, int]) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {item.key: item.value for item in tensor.external_data}
    if sorted(item.key for item in tensor.external_data) != sorted(_KEYS):
        keys = [item.key for item in tensor.external_data]
        raise ArtifactError(f"tensor {tensor.name} has external data keys {keys}")
    location = entries["location"]
    if location not in sizes:
        raise ArtifactError(f"tensor {tensor.name} points at {location!r}, not a blob of the shard")
    for key in ("offset", "length"):
        if not (entries[key].isascii() and entries[key].isdecimal()):
            raise ArtifactError(f"tensor {tensor.name} has {key} {entries[key]!r}")
    end = int(entries["offset"]) + int(entries["length"])
    if end > sizes[location]:
        raise ArtifactError(
            f"tensor {tensor.name} ends at byte {end} of {location}, which has {sizes[location]}"
        )

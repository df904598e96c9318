"""Shards with made-up weights: what a profile run measures before any weight has been sent.

One unit graph is repeated under the names of its successors, and every copy gets weights of its
own, random and of the right shapes, so that caches see as many bytes as with real ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgeshard.artifacts.fuse import concatenate
from edgeshard.artifacts.store import Store
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.shard import ShardManifest

SEED = 20240523
CHUNK_BYTES = 4 * 2**20
FLOATS = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}


def make_representative(
    graphs: Store, scratch: Store, model: ModelManifest, model_blob: Blob, unit: int, count: int
) -> ShardManifest:
    """Make a shard of `count` copies of a unit in a scratch store.

    Args:
        graphs: holds the unit's graph; its weights need not be there.
        scratch: gets graph and weights.
        model: the unit's model.
        model_blob: its manifest.
        unit: index of the unit; only a block can be repeated.
        count: copies.
    """
    plain = onnx.load_model_from_string(graphs.read(model.units[unit].graph))
    sizes = {blob.filename: blob.size_bytes for blob in model.units[unit].weights}
    copies = []
    weights: list[Blob] = []
    for offset in range(count):
        copy = _renamed(plain, unit - 1, unit - 1 + offset) if offset else plain
        blobs = {
            name: _random_blob(scratch, size, offset, copy, name) for name, size in sizes.items()
        }
        copies.append(_pointed(copy, blobs))
        weights += [blob for blob in blobs.values() if blob not in weights]
    fused = concatenate(copies)
    graph = scratch.put(fused.SerializeToString(deterministic=True), ".onnx")
    units = range(unit, unit + count)
    shard = ShardManifest.of(model, model_blob.digest, units, graph, tuple(weights))
    if model.units[unit].kind == "head":
        return shard
    return msgspec.structs.replace(shard, num_units=max(len(model.units), unit + count + 1))


def _renamed(model: onnx.ModelProto, old: int, new: int) -> onnx.ModelProto:
    """The graph of block `old` under the names of block `new`."""
    pattern = re.compile(rf"^(?:block\.{old}(?=[/:.])|hidden\.(\d+)$)")

    def rename(name: str) -> str:
        return pattern.sub(
            lambda match: f"hidden.{int(match[1]) + new - old}" if match[1] else f"block.{new}",
            name,
        )

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = rename(node.name)
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    for item in (*copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        item.name = rename(item.name)
    return copy


def _pointed(model: onnx.ModelProto, blobs: dict[str, Blob]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = blobs[entry.value].filename
    return copy


def _random_blob(
    scratch: Store, size_bytes: int, seed: int, model: onnx.ModelProto, location: str
) -> Blob:
    """A blob of the right length: small floats where floats are read, random codes elsewhere."""
    generator = np.random.default_rng((SEED, seed, size_bytes))
    data = np.zeros(size_bytes, np.uint8)
    for tensor in model.graph.initializer:
        entries = {item.key: item.value for item in tensor.external_data}
        if entries.get("location") != location:
            continue
        start, length = int(entries["offset"]), int(entries["length"])
        if tensor.data_type in FLOATS:
            floats = generator.standard_normal(length // FLOATS[tensor.data_type], np.float32)
            data[start : start + length] = _bytes(floats * np.float32(0.02), tensor.data_type)
        else:
            data[start : start + length] = generator.integers(0, 256, length, np.uint8)
    with scratch.writer(".safetensors") as writer:
        for start in range(0, size_bytes, CHUNK_BYTES):
            writer.write(data[start : start + CHUNK_BYTES].data)
        return writer.finish()


def _bytes(floats: NDArray[np.float32], kind: int) -> NDArray[np.uint8]:
    if kind == TensorProto.FLOAT16:
        return floats.astype(np.float16).view(np.uint8)
    if kind == TensorProto.BFLOAT16:  # the upper half of a float32
        return np.ascontiguousarray(floats.view(np.uint16)[1::2]).view(np.uint8)
    return floats.view(np.uint8)


def bytes_of(blobs: Sequence[Blob]) -> int:
    """Bytes of all blobs."""
    return sum(blob.size_bytes for blob in blobs)

"""Fuse contiguous units of a model into one shard graph; needs onnx, never torch.

    [embedding, block.0, block.1]  →  token_ids ─ … ─ hidden.3     over the same three blobs

No weight is copied. Unit graphs meet by name (`hidden.I`), every other name carries its unit's
place, and what several units share (rotary tables, length inputs, constants) has one name in all of
them. Nothing is optimised across a border between units, so that the same tokens come out wherever
a plan cuts.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import onnx

from edgeshard.artifacts.engine import engine_options
from edgeshard.artifacts.store import Store
from edgeshard.errors import InputError
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.shard import ShardManifest


def fuse(
    store: Store, model: ModelManifest, model_blob: Blob, start: int, stop: int
) -> tuple[ShardManifest, Blob]:
    """Make the shard of units `[start, stop)` of the model's first target in the store.

    Returns:
        The shard's manifest and its blob.

    Raises:
        InputError: the range is not within the model.
        ArtifactError: a unit's graph is missing or changed.
    """
    if not 0 <= start < stop <= len(model.units):
        raise InputError(f"units [{start}, {stop}) are not within the model's {len(model.units)}")
    units = model.units[start:stop]
    graphs = [onnx.load_model_from_string(store.read(unit.graph)) for unit in units]
    fused = concatenate(graphs)
    weights = {blob.digest: blob for unit in units for blob in unit.weights}
    graph = store.put(fused.SerializeToString(deterministic=True), ".onnx")
    units_here = range(start, stop)
    made = ShardManifest.of(model, model_blob.digest, units_here, graph, tuple(weights.values()))
    shard = msgspec.structs.replace(made, provider_options=engine_options(made))
    return shard, store.put_shard(shard)


def concatenate(models: list[onnx.ModelProto]) -> onnx.ModelProto:
    """Put graphs behind each other: an output that a later graph reads becomes an inner value."""
    made = {value.name for model in models for value in model.graph.output}
    read = {value.name for model in models for value in model.graph.input}
    fused = onnx.ModelProto()
    fused.CopyFrom(models[0])
    fused.graph.Clear()
    fused.graph.name = f"{models[0].graph.name}..{models[-1].graph.name}"
    fused.ir_version = max(model.ir_version for model in models)
    domains = {item.domain: item for model in models for item in model.opset_import}
    del fused.opset_import[:]
    fused.opset_import.extend(domains[name] for name in sorted(domains))
    for model in models:
        fused.graph.node.extend(model.graph.node)
    fused.graph.initializer.extend(_once(t for m in models for t in m.graph.initializer))
    inputs = _once(value for model in models for value in model.graph.input)
    fused.graph.input.extend(value for value in inputs if value.name not in made)
    outputs = _once(value for model in models for value in model.graph.output)
    fused.graph.output.extend(value for value in outputs if value.name not in read)
    return fused


def _once(items: Iterable[onnx.TensorProto]) -> list[onnx.TensorProto]:
    return list({item.name: item for item in items}.values())

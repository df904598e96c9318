"""Made-up shards run like real ones and weigh as much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeshard.artifacts.store import Store
from edgeshard.runtime.representative import bytes_of, make_representative
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Precision, Target
from support.tiny_llama import NUM_BLOCKS, VOCAB, compiled

KINDS: list[tuple[Precision, Target]] = [("fp32", "ort"), ("int4", "ort"), ("int8", "portable")]


def _graphs_only(
    precision: Precision, target: Target, folder: Path, *, int8_cache: bool = False
) -> Store:
    """A store as the profiler sees it: graphs, and no weights."""
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    store = Store(folder / "graphs")
    for unit in model.manifest.units:
        store.put(model.store.read(unit.graph), ".onnx")
    return store


def test_a_window_with_keys_and_values_in_int8_runs(tmp_path: Path) -> None:
    model = compiled("grouped", "int4", int8_cache=True)
    graphs = _graphs_only("int4", "ort", tmp_path, int8_cache=True)
    scratch = Store(tmp_path / "scratch")

    shard = make_representative(graphs, scratch, model.manifest, model.blob, 1, 3)

    session = ShardSession.open(scratch, shard, threads=1, context=16)
    hidden = np.random.default_rng(0).standard_normal((1, 5, model.manifest.hidden_size))
    assert np.isfinite(session.run(0, [0], hidden.astype(np.float32))).all()
    assert np.isfinite(session.run(0, [5], hidden[:, :1].astype(np.float32))).all()
    scales = [blob for blob in shard.weights if blob.size_bytes < 1000]
    assert len(scales) == 3  # of each copy its own
    session.close()


@pytest.mark.parametrize(("unit", "count"), [(0, 1), (1, 1), (2, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize(("precision", "target"), KINDS)
def test_a_window_runs(
    precision: Precision, target: Target, unit: int, count: int, tmp_path: Path
) -> None:
    model = compiled("grouped", precision, target)
    graphs = _graphs_only(precision, target, tmp_path)
    scratch = Store(tmp_path / "scratch")

    shard = make_representative(graphs, scratch, model.manifest, model.blob, unit, count)

    session = ShardSession.open(scratch, shard, threads=1, context=16)
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((1, 5, model.manifest.hidden_size)).astype(np.float32)
    values = np.ones((1, 5), np.int64) if unit == 0 else hidden
    result = session.run(0, [0], values)
    assert np.isfinite(result).all()
    is_head = unit == NUM_BLOCKS + 1
    assert result.shape == ((1, VOCAB) if is_head else (1, 5, model.manifest.hidden_size))
    assert len(shard.blocks) == (count if model.manifest.units[unit].kind == "block" else 0)
    session.close()


def test_every_copy_has_weights_of_its_own(tmp_path: Path) -> None:
    model = compiled("grouped")
    graphs = _graphs_only("fp32", "ort", tmp_path)
    unit = model.manifest.units[1]

    shard = make_representative(
        graphs, Store(tmp_path / "scratch"), model.manifest, model.blob, 1, 3
    )

    assert len({blob.digest for blob in shard.weights}) == 3 * len(unit.weights)
    assert bytes_of(shard.weights) == 3 * bytes_of(unit.weights)


def test_the_same_window_is_made_twice_alike(tmp_path: Path) -> None:
    model = compiled("grouped")
    graphs = _graphs_only("fp32", "ort", tmp_path)

    shards = [
        make_representative(graphs, Store(tmp_path / name), model.manifest, model.blob, 2, 2)
        for name in "ab"
    ]

    assert shards[0] == shards[1]

"""One artifact for several targets and types: what they share, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.errors import InputError
from edgeshard.schemas.common import Precision, Target
from support.tiny_llama import CONTEXT, CompiledModel, compiled, folder

TEXT = list(range(3, 40))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    store = Store(tmp_path_factory.mktemp("several"))
    result = compile_model(
        folder("grouped"), store, precision="fp32", variants=("portable", "tensorrt")
    )
    return CompiledModel(store, result.manifest, result.blob)


def test_the_targets_share_every_weight(several: CompiledModel) -> None:
    manifest = several.manifest
    weights = [[u.weights for u in manifest.view(t).units] for t in manifest.targets]

    assert manifest.targets == ("ort", "portable", "tensorrt")
    assert weights[0] == weights[1] == weights[2]
    assert manifest.name == "grouped-fp32-ort-portable-tensorrt"


@pytest.mark.parametrize("target", ["ort", "portable", "tensorrt"])
def test_a_view_is_what_compiling_for_that_target_alone_gives(
    several: CompiledModel, target: Target
) -> None:
    alone, view = compiled("grouped", "fp32", target).manifest, several.manifest.view(target)

    for field in ("units", "kv", "opset", "min_runtime", "target", "variants", "activations"):
        assert getattr(view, field) == getattr(alone, field), field


def test_all_blobs_are_named_and_whole(several: CompiledModel) -> None:
    several.store.verify(several.manifest.blobs())
    graphs = {u.graph for t in several.manifest.targets for u in several.manifest.view(t).units}

    assert graphs < set(several.manifest.blobs())
    assert len(graphs) == 3 * len(several.manifest.units) - 1  # two embeddings with a free batch


@pytest.mark.parametrize(
    ("precision", "target"), [("fp16", "ort"), ("fp16", "portable"), ("fp16", "tensorrt")]
)
def test_half_precision_is_near_and_its_floats_take_half(
    precision: Precision, target: Target
) -> None:
    model = compiled("grouped", precision, target)
    with compiled("grouped").chain() as whole, model.chain() as half:
        expected = whole.step(0, TEXT, every_position=True)
        found = half.step(0, TEXT, every_position=True)

    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.01 * expected.std()
    assert model.manifest.activations == model.manifest.kv.dtype == "float16"
    for unit in model.manifest.units:
        for blob in unit.weights:
            kinds = {array.dtype for array in load_file(model.store.path(blob)).values()}
            assert kinds <= {np.dtype(np.float16)}, unit.name


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_quantised_weights_go_with_half_precision(target: Target, tmp_path: Path) -> None:
    store = Store(tmp_path)
    result = compile_model(
        folder("grouped"), store, precision="int8", activations="float16", target=target
    )
    half = CompiledModel(store, result.manifest, result.blob)
    with compiled("grouped", "int8", target).chain() as whole, half.chain() as chain:
        expected = whole.step(0, TEXT, every_position=True)
        found = chain.step(0, TEXT, every_position=True)

    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * expected.std()
    assert result.manifest.kv.bytes_per_token() == 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("precision", "activations", "target", "words"),
    [
        ("int4", None, "tensorrt", "no precision int4; it has fp32, fp16, int8"),
        ("stored", None, "tensorrt", "no precision stored"),
        ("bf16", None, "portable", "no precision bf16"),
        ("int8", "bfloat16", "portable", "no activations bfloat16; it has float32, float16"),
        ("fp16", "float32", "ort", "precision fp16 computes in float16, not in float32"),
    ],
)
def test_what_a_target_has_not_is_refused_before_anything_is_written(
    precision: Precision, activations: str, target: Target, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        compile_model(
            folder("grouped"),
            Store(tmp_path),
            precision=precision,
            activations=activations,  # type: ignore[arg-type]  # from a table
            target=target,
        )
    assert list((tmp_path / "blobs").iterdir()) == []


def test_the_static_context_is_asked_for_and_recorded(tmp_path: Path) -> None:
    result = compile_model(folder("grouped"), Store(tmp_path), target="tensorrt", context=64)

    assert (result.manifest.kv.context, result.manifest.kv.max_step) == (64, 64)
    with pytest.raises(InputError, match=f"context {CONTEXT} is not the 64 .* --context {CONTEXT}"):
        CompiledModel(Store(tmp_path), result.manifest, result.blob).chain()

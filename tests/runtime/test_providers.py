"""What a provider is told, and what a manifest may not say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.errors import ArtifactError, InputError
from edgeshard.runtime.providers import ProviderError, provider_list
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import CPU, CUDA, OPENVINO, TENSORRT
from support.tiny_llama import CONTEXT, compiled


@pytest.fixture(scope="module")
def shard() -> ShardManifest:
    model = compiled("grouped", "fp16", "tensorrt")
    return fuse(model.store, model.manifest, model.blob, 0, 2)[0]


def test_engines_of_a_graph_have_a_folder_and_timings_are_shared(
    shard: ShardManifest, tmp_path: Path
) -> None:
    first, *behind = provider_list(TENSORRT, shard, tmp_path)

    assert not isinstance(first, str)
    name, options = first
    assert (name, behind) == (TENSORRT, [CUDA, CPU])
    digest = shard.graph.digest.removeprefix("sha256:")[:16]
    assert options["trt_engine_cache_path"] == str(tmp_path / "engines" / digest)
    assert options["trt_timing_cache_path"] == str(tmp_path / "timings" / "all")
    assert (tmp_path / "engines" / digest).is_dir()
    assert options["trt_profile_max_shapes"] == f"token_ids:1x{CONTEXT},position_ids:1x{CONTEXT}"


def test_other_providers_get_no_options(shard: ShardManifest, tmp_path: Path) -> None:
    assert provider_list(CPU, shard, tmp_path) == [CPU]
    assert provider_list(CUDA, shard, tmp_path) == [CUDA, CPU]
    assert list(tmp_path.iterdir()) == []


def test_openvino_is_not_to_round_activations(shard: ShardManifest, tmp_path: Path) -> None:
    first, *behind = provider_list(OPENVINO, shard, tmp_path)

    assert not isinstance(first, str)
    assert (first[0], behind) == (OPENVINO, [CPU])
    assert json.loads(first[1]["load_config"]) == {"CPU": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would compute on the CPU, and say so in a warning only."""
    model = compiled("grouped", "fp16")
    shard = fuse(model.store, model.manifest, model.blob, 0, 2)[0]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])

    with pytest.raises(ProviderError, match="CUDAExecutionProvider does not start on this device"):
        ShardSession.open(model.store, shard, provider=CUDA, context=CONTEXT)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("trt_engine_cache_path", "/etc", "'/etc', not the name of a folder"),
        ("trt_timing_cache_path", "../up", "'../up', not the name of a folder"),
        ("trt_extra_plugin_lib_paths", "evil.so", "'trt_extra_plugin_lib_paths', which it may not"),
    ],
)
def test_a_manifest_sets_no_path_and_no_other_option(
    shard: ShardManifest, name: str, value: str, words: str, tmp_path: Path
) -> None:
    bad = msgspec.structs.replace(shard, provider_options={**shard.provider_options, name: value})

    with pytest.raises(ArtifactError, match=words):
        provider_list(TENSORRT, bad, tmp_path)


def test_a_shard_for_another_provider_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [OPENVINO])
    model = compiled("grouped")
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, 2)

    with pytest.raises(InputError, match="OpenVINOExecutionProvider runs portable, the shard is o"):
        ShardSession.open(model.store, shard, provider=OPENVINO, context=CONTEXT)

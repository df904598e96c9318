"""Compiling is repeatable, stores nothing twice, and refuses bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.progress import Progress
from edgeshard.errors import InputError
from edgeshard.schemas.common import Precision, Target
from support.gguf_file import write_gguf
from support.tiny_llama import NUM_BLOCKS, VOCAB, compiled, config, folder, save


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_two_compiles_give_the_same_manifest(
    precision: Precision, target: Target, tmp_path: Path
) -> None:
    first = compiled("grouped", precision, target)

    again = compile_model(folder("grouped"), Store(tmp_path), precision=precision, target=target)

    assert again.blob == first.blob
    assert {p.name for p in (tmp_path / "blobs").iterdir()} >= {
        b.filename for u in again.manifest.units for b in (u.graph, *u.weights)
    }


def test_a_gguf_without_a_tokenizer_compiles_twice_to_the_same(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")

    digests = {compile_model(file.path, Store(tmp_path / name)).blob.digest for name in "ab"}

    assert len(digests) == 1


def test_a_tied_embedding_is_stored_once() -> None:
    model = compiled("grouped", "fp32")
    embedding, head = model.manifest.units[0], model.manifest.units[-1]

    assert embedding.weights[0] in head.weights
    blobs = {b.digest: b.size_bytes for u in model.manifest.units for b in u.weights}
    tied = config("grouped")
    parameters = sum(unit.num_parameters for unit in model.manifest.units)
    tables = 2 * tied.max_position_embeddings * tied.head_dim // 2
    headers = 4096 * (NUM_BLOCKS + 3)
    assert sum(blobs.values()) < 4 * (parameters + tables) + headers
    assert 4 * VOCAB * tied.hidden_size > headers  # else a second copy could hide


def test_an_untied_head_has_a_matrix_of_its_own() -> None:
    model = compiled("multi_head", "fp32")

    assert model.manifest.units[0].weights[0] not in model.manifest.units[-1].weights


def test_blocks_of_one_kind_have_one_structure() -> None:
    units = compiled("grouped", "int4").manifest.units

    assert len({unit.structure for unit in units}) == 3
    assert len({unit.graph.digest for unit in units}) == len(units)


def test_progress_ends_with_the_whole_checkpoint(tmp_path: Path) -> None:
    seen: list[Progress] = []

    compile_model(folder("grouped"), Store(tmp_path), on_progress=seen.append)

    parameters = [item.done for item in seen if item.total > 1]
    assert parameters == sorted(parameters)
    assert seen[-1].done == seen[-1].total > 1


# What is refused


def _config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps(plain | changes))


def _tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    file = path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def _missing_path(path: Path) -> Path:
    return path / "absent"


def _empty_folder(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def _no_weights(path: Path) -> Path:
    (path / "model.safetensors").unlink()
    return path


def _text_file(path: Path) -> Path:
    return path / "config.json"


def _broken_config(path: Path) -> Path:
    (path / "config.json").write_text('{"model_type": "llama",')
    return path


def _truncated(path: Path) -> Path:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def _garbage(path: Path) -> Path:
    (path / "model.safetensors").write_bytes(b"\xff" * 4096)
    return path


def _pickled(path: Path) -> Path:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return path


def _outside_index(path: Path) -> Path:
    (path / "model.safetensors").rename(path / "moved")
    index = {"weight_map": {"model.norm.weight": "../../other.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _part_missing(path: Path) -> Path:
    (path / "model.safetensors").rename(path / "moved")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _gpt2(path: Path) -> Path:
    _config(path, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    return path


def _mixtral(path: Path) -> Path:
    _config(path, model_type="mixtral", architectures=["MixtralForCausalLM"])
    return path


def _mish(path: Path) -> Path:
    _config(path, hidden_act="mish")
    return path


def _wrong_shape(path: Path) -> Path:
    name = "model.layers.1.mlp.up_proj.weight"
    _tensors(path, lambda tensors: tensors.update({name: tensors[name][:-1].copy()}))
    return path


def _missing_tensor(path: Path) -> Path:
    _tensors(path, lambda tensors: tensors.pop("model.layers.2.self_attn.k_proj.weight"))
    return path


def _unknown_tensor(path: Path) -> Path:
    _tensors(path, lambda tensors: tensors.update({"model.extra.weight": np.zeros(3, np.float32)}))
    return path


def _integer_tensor(path: Path) -> Path:
    name = "model.layers.0.mlp.up_proj.weight"
    _tensors(path, lambda tensors: tensors.update({name: tensors[name].astype(np.int32)}))
    return path


def _nan(name: str, path: Path) -> Path:
    _tensors(path, lambda tensors: tensors[name].reshape(-1).__setitem__(5, np.nan))
    return path


def _nan_matrix(path: Path) -> Path:
    return _nan("model.layers.2.mlp.down_proj.weight", path)


def _nan_norm(path: Path) -> Path:
    return _nan("model.norm.weight", path)


def _gguf_truncated(path: Path) -> Path:
    file = write_gguf(path / "tiny.gguf").path
    file.write_bytes(file.read_bytes()[: file.stat().st_size - 2000])
    return file


def _gguf_cut_header(path: Path) -> Path:
    file = write_gguf(path / "tiny.gguf").path
    file.write_bytes(file.read_bytes()[:200])
    return file


def _gguf_garbage(path: Path) -> Path:
    (path / "tiny.gguf").write_bytes(b"this is no model" * 64)
    return path / "tiny.gguf"


def _gguf_empty(path: Path) -> Path:
    (path / "tiny.gguf").touch()
    return path / "tiny.gguf"


def _gguf_gpt2(path: Path) -> Path:
    return write_gguf(path / "tiny.gguf", architecture="gpt2").path


def _gguf_unknown(path: Path) -> Path:
    return write_gguf(path / "tiny.gguf", extra="attn_sinks.weight").path


def _gguf_missing(path: Path) -> Path:
    return write_gguf(path / "tiny.gguf", without="blk.1.ffn_up.weight").path


def _gguf_nan_scale(path: Path) -> Path:
    file = write_gguf(path / "tiny.gguf", {}).path
    data = bytearray(file.read_bytes())
    data[-2048 - 512 :] = b"\xff" * (2048 + 512)  # codes and scales of the last matrix
    file.write_bytes(bytes(data))
    return file


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (_missing_path, "absent"),
    (_empty_folder, "config.json"),
    (_no_weights, "no model.safetensors"),
    (_text_file, "neither a Hugging Face folder nor a .gguf file"),
    (_broken_config, "config.json"),
    (_truncated, "model.safetensors is not whole"),
    (_garbage, "model.safetensors is not whole"),
    (_pickled, "pickled"),
    (_outside_index, "'../../other.safetensors'"),
    (_part_missing, "model-00001-of-00002.safetensors is missing"),
    (_gpt2, "'gpt2' is not supported; supported: llama, mistral"),
    (_mixtral, "'mixtral' is not supported; supported: llama, mistral"),
    (_mish, "operator Mish"),
    (_wrong_shape, "layers.1.mlp.up_proj.weight"),
    (_missing_tensor, "lacks layers.2.self_attn.k_proj.weight"),
    (_unknown_tensor, "unknown tensor extra.weight"),
    (_integer_tensor, "is I32; supported: BF16, F16, F32"),
    (_nan_matrix, "layers.2.mlp.down_proj.weight"),
    (_nan_norm, "norm.weight"),
    (_gguf_truncated, "tiny.gguf"),
    (_gguf_cut_header, "tiny.gguf is not a whole GGUF file"),
    (_gguf_garbage, "tiny.gguf is not a whole GGUF file"),
    (_gguf_empty, "tiny.gguf is not a whole GGUF file"),
    (_gguf_gpt2, "'gpt2' is not supported; supported: llama, qwen2"),
    (_gguf_unknown, "'attn_sinks.weight'"),
    (_gguf_missing, "lacks layers.1.mlp.up_proj.weight"),
    (_gguf_nan_scale, "holds NaN or infinity"),
]


@pytest.mark.parametrize(("spoil", "named"), REFUSED, ids=[f.__name__[1:] for f, _ in REFUSED])
def test_bad_input_is_refused_in_one_line_and_names_no_model(
    spoil: Callable[[Path], Path], named: str, tmp_path: Path
) -> None:
    path = spoil(save("grouped", tmp_path / "checkpoint"))
    store = Store(tmp_path / "store")

    with pytest.raises(InputError) as caught:
        compile_model(path, store)

    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.models() == []
    assert not list((tmp_path / "store" / "incoming").iterdir())


def test_fused_rotary_attention_refuses_odd_head_sizes_and_names_the_other_target(
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    odd = config("grouped")
    odd.head_dim = 24
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(odd, dtype=torch.float32).save_pretrained(tmp_path / "odd")

    with pytest.raises(InputError, match=r"head size 24 .* --target portable"):
        compile_model(tmp_path / "odd", Store(tmp_path / "store"))
    portable = compile_model(tmp_path / "odd", Store(tmp_path / "store"), target="portable")
    assert portable.manifest.kv.head_dim == 24


def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)

    with pytest.raises(InputError, match=r"'\.\./evil'"):
        compile_model(folder("grouped"), store, name="../evil")

    assert store.models() == []

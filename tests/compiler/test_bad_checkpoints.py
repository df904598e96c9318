"""Lying files, impossible settings, full disks: one clear line each, and a store that stays usable.

The table goes on where that of `test_compile.py` ends.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch
import torch

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.hub import NEEDED, fetch
from edgeshard.errors import ArtifactError, InputError
from edgeshard.schemas.common import Precision
from support.gguf_file import write_gguf
from support.tiny_llama import NUM_BLOCKS, folder, save

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


def _config(path: Path, **changes: object) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def _header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Rewrite the header of the weights and leave the data as it is."""
    file = path / WEIGHTS
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


def _tensor(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    tensors = safetensors.torch.load_file(path / WEIGHTS)
    tensors[name] = change(tensors[name])
    safetensors.torch.save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    return path


def _more(path: Path, name: str, tensor: torch.Tensor) -> Path:
    tensors = safetensors.torch.load_file(path / WEIGHTS)
    safetensors.torch.save_file(tensors | {name: tensor}, path / WEIGHTS)
    return path


def _sharded(path: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """Two files and their index, changed."""
    tensors = safetensors.numpy.load_file(path / WEIGHTS)
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        safetensors.numpy.save_file(part, path / file, metadata={"format": "pt"})
    (path / WEIGHTS).unlink()
    change(places)
    (path / INDEX).write_text(json.dumps({"weight_map": places}))
    return path


def _other(file: str) -> str:
    one, two = "00001-of", "00002-of"
    return file.replace(one, two) if one in file else file.replace(two, one)


def _quantised(path: Path, method: str) -> Path:
    return _config(path, quantization_config={"quant_method": method, "bits": 4})


def _file(path: Path, name: str, data: bytes) -> Path:
    (path / name).write_bytes(data)
    return path / name


def _without(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def _twice(path: Path) -> Path:
    _sharded(path, lambda places: None)
    first = safetensors.numpy.load_file(path / "model-00001-of-00002.safetensors")
    second = safetensors.numpy.load_file(path / "model-00002-of-00002.safetensors")
    name = next(iter(first))
    safetensors.numpy.save_file(
        second | {name: first[name]}, path / "model-00002-of-00002.safetensors"
    )
    return path


def _gguf_of(path: Path, architecture: str) -> Path:
    return write_gguf(path / "tiny.gguf", architecture=architecture).path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "header longer than the file": (
        lambda p: _file(p, WEIGHTS, (2**40).to_bytes(8, "little") + b"{}").parent,
        "model.safetensors is not whole",
    ),
    "header that is no JSON": (
        lambda p: _file(p, WEIGHTS, (4).to_bytes(8, "little") + b"{{{{").parent,
        "model.safetensors is not whole",
    ),
    "empty weights": (lambda p: _file(p, WEIGHTS, b"").parent, "model.safetensors is not whole"),
    "tensor beyond the end": (
        lambda p: _header(p, lambda h: h[NORM].update(data_offsets=[2**33, 2**33 + 256])),
        "model.safetensors is not whole",
    ),
    "tensors over each other": (
        lambda p: _header(p, lambda h: h[NORM].update(data_offsets=[0, 256])),
        "model.safetensors is not whole",
    ),
    "shape that is not the bytes": (
        lambda p: _header(p, lambda h: h[NORM].update(shape=[63])),
        "model.safetensors is not whole",
    ),
    "negative shape": (
        lambda p: _header(p, lambda h: h[NORM].update(shape=[-64])),
        "model.safetensors is not whole",
    ),
    "type that nobody knows": (
        lambda p: _header(p, lambda h: h[NORM].update(dtype="F13")),
        "model.safetensors is not whole",
    ),
    "8-bit floats": (
        lambda p: _tensor(p, "model.embed_tokens.weight", lambda t: t.to(torch.float8_e4m3fn)),
        "is F8_E4M3; supported: BF16, F16, F32",
    ),
    "infinity": (
        lambda p: _tensor(p, NORM, lambda t: t * torch.inf),
        "norm.weight of",
    ),
    "NaN in float16": (
        lambda p: _tensor(
            p, "model.layers.0.mlp.up_proj.weight", lambda t: (t * torch.nan).to(torch.float16)
        ),
        "layers.0.mlp.up_proj.weight of",
    ),
    "NaN in bfloat16": (
        lambda p: _tensor(
            p, "model.layers.1.mlp.up_proj.weight", lambda t: (t * torch.nan).to(torch.bfloat16)
        ),
        "layers.1.mlp.up_proj.weight of",
    ),
    "matrix that no model has": (
        lambda p: _more(p, "spare", torch.ones(4, 8)),
        "has an unknown tensor spare",
    ),
    "matrix without rows": (
        lambda p: _tensor(p, "model.layers.0.mlp.up_proj.weight", lambda t: t[:0].clone()),
        "layers.0.mlp.up_proj.weight of",
    ),
    "matrix without columns": (
        lambda p: _tensor(p, "model.layers.0.mlp.up_proj.weight", lambda t: t[:, :0].clone()),
        "layers.0.mlp.up_proj.weight of",
    ),
    "matrix where a vector belongs": (
        lambda p: _tensor(p, NORM, lambda t: t[None].clone()),
        "tensor norm.weight of",
    ),
    "index of a tensor that is nowhere": (
        lambda p: _sharded(p, lambda m: m.update({"model.x": m[NORM]})),
        "model.x lies in model-0000",
    ),
    "index with the other file": (
        lambda p: _sharded(p, lambda m: m.update({NORM: _other(m[NORM])})),
        "but it lies in model-0000",
    ),
    "tensor in two files": (_twice, "and again in"),
    "index without a map": (
        lambda p: _file(_without(p, WEIGHTS), INDEX, b"{}").parent,
        "has no weight_map",
    ),
    "index that is a list": (
        lambda p: _file(_without(p, WEIGHTS), INDEX, b"[]").parent,
        "is not a JSON object",
    ),
    "configuration that is a list": (
        lambda p: _file(p, "config.json", b"[]").parent,
        "is not a JSON object",
    ),
    "GPTQ": (lambda p: _quantised(p, "gptq"), "quantised with GPTQ"),
    "AWQ": (lambda p: _quantised(p, "awq"), "quantised with AWQ"),
    "more layers than weights": (
        lambda p: _config(p, num_hidden_layers=10**6),
        f"has tensors of {NUM_BLOCKS} layers, its configuration says 1000000",
    ),
    "fewer layers than weights": (
        lambda p: _config(p, num_hidden_layers=2),
        f"has tensors of {NUM_BLOCKS} layers, its configuration says 2",
    ),
    "no vocabulary": (lambda p: _config(p, vocab_size=0), "vocab_size of the configuration is 0"),
    "other vocabulary": (lambda p: _config(p, vocab_size=130), "its configuration says (130, 64)"),
    "hidden size that is a word": (
        lambda p: _config(p, hidden_size="wide"),
        "hidden_size",
    ),
    "context beyond reason": (
        lambda p: _config(p, max_position_embeddings=10**9),
        "max_position_embeddings is 1000000000",
    ),
    "heads that do not share out": (
        lambda p: _config(p, num_key_value_heads=3),
        "no multiple of 3 heads of keys",
    ),
    "RoPE scaling that nobody knows": (
        lambda p: _config(p, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        "spiral",
    ),
    "broken tokenizer": (
        lambda p: _file(p, "tokenizer.json", b'{"model": 7}').parent,
        "the tokenizer of",
    ),
    "pickled file": (lambda p: _file(p, "model.pt", b"\x80\x04."), "model.pt is pickled"),
    "weights without their folder": (lambda p: p / WEIGHTS, "give its folder"),
    "GGUF of Qwen3 with experts": (
        lambda p: _gguf_of(p, "qwen3moe"),
        "give the Hugging Face folder",
    ),
    "GGUF of EXAONE 4": (lambda p: _gguf_of(p, "exaone4"), "give the Hugging Face folder"),
}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_checkpoint_is_refused_in_one_line(
    case: str, precision: Precision, tmp_path: Path
) -> None:
    spoil, named = REFUSED[case]
    path = spoil(save("grouped", tmp_path / "checkpoint"))
    store = Store(tmp_path / "store")

    with pytest.raises(InputError) as caught:
        compile_model(path, store, precision=precision)

    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.models() == []
    assert not list((store.root / "incoming").iterdir())


def test_a_sharded_checkpoint_compiles_to_what_the_single_file_does(tmp_path: Path) -> None:
    sharded = _sharded(save("grouped", tmp_path / "sharded"), lambda places: None)

    one = compile_model(folder("grouped"), Store(tmp_path / "one")).manifest
    two = compile_model(sharded, Store(tmp_path / "two")).manifest

    assert two.units == one.units


def test_a_disk_without_room_is_refused_before_the_work_with_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ArtifactError, match=r"needs \d+ more bytes, the disk has 1000"):
            compile_model(folder("grouped"), store)

    assert store.models() == []
    assert compile_model(folder("grouped"), store).manifest.name in store.models()


def test_a_disk_that_fills_up_leaves_nothing_and_the_store_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="No space left on device; nothing was kept"):
            compile_model(folder("grouped"), store)

    assert store.models() == []
    assert not list((tmp_path / "blobs").iterdir())
    assert not list((tmp_path / "incoming").iterdir())
    assert compile_model(folder("grouped"), store).manifest.name in store.models()


def test_a_real_full_disk_is_refused_with_the_bytes(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        store = Store(tmp_path / "store")
        with pytest.raises(ArtifactError, match=r"needs \d+ more bytes"):
            compile_model(folder("grouped"), store)
        assert store.models() == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")

    with pytest.raises(InputError, match=r"cannot use .*taken.* as a store"):
        Store(tmp_path / "taken" / "store")


# A hub id


def test_a_hub_id_fetches_only_what_is_needed() -> None:
    asked: dict[str, Any] = {}

    def download(**options: Any) -> str:
        asked.update(options)
        return str(folder("grouped"))

    assert fetch(Path("owner/name"), download) == folder("grouped")
    assert asked == {"repo_id": "owner/name", "allow_patterns": list(NEEDED)}
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in NEEDED)


def test_without_a_network_a_hub_id_is_refused_in_one_line() -> None:
    def download(**_: Any) -> str:
        raise ConnectionError("Name or service not known\nTraceback …")

    with pytest.raises(InputError) as caught:
        fetch(Path("owner/name"), download)

    assert "cannot be fetched from the hub: Name or service not known; give" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_with_more_parts_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "absent")

"""Generation defaults: read, checked, kept in the manifest, told where they are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.generation import Defaults, read_generation, shown
from edgeshard.errors import InputError
from edgeshard.schemas import files
from edgeshard.schemas.model import Generation, ModelManifest
from support.gguf_file import write_gguf
from support.tiny_llama import save

SAID: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "max_new_tokens": 128,
}


def _write(folder: Path, **said: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(said), "utf-8")
    return folder


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    found, ends, remarks = read_generation(_write(tmp_path, **SAID, eos_token_id=[5, 9]))

    assert found == Generation(**SAID)
    assert (ends, remarks) == ((5, 9), ())


def test_what_the_file_leaves_out_stays_unsaid(tmp_path: Path) -> None:
    assert read_generation(tmp_path) == Defaults(Generation())
    assert read_generation(_write(tmp_path, bos_token_id=1, top_p=None))[0] == Generation()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: .*>= 0"),
        ({"top_k": 1.5}, "top_k is 1.5: Expected `int"),
        ({"top_p": 0}, "top_p is 0: .*> 0"),
        ({"top_p": 1.5}, "top_p is 1.5: .*<= 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: .*>= 1"),
        ({"do_sample": "yes"}, "do_sample is 'yes': Expected `bool"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; give a token id"),
        ({"eos_token_id": [-1]}, r"eos_token_id is \[-1\]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    said: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"generation_config.json: {message}"):
        read_generation(_write(tmp_path, **said))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text, "utf-8")

    with pytest.raises(InputError, match=r"generation_config\.json"):
        read_generation(tmp_path)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    folder = _write(tmp_path, num_beams=4, min_p=0.0, length_penalty=1.0, suppress_tokens=[7])
    _, _, remarks = read_generation(folder)

    assert [remark.split(",")[0] for remark in remarks] == [
        "generation_config.json says num_beams 4",
        "generation_config.json says suppress_tokens [7]",
    ]


def test_the_defaults_in_words() -> None:
    assert shown(Generation()) == ""
    assert shown(Generation(temperature=0.6, max_new_tokens=64)) == "max_new_tokens 64"
    assert shown(Generation(do_sample=True, temperature=0.6, top_k=0)) == (
        "drawn, temperature 0.6, top_k 0"
    )


def test_defaults_travel_in_the_manifest_and_its_digest_stays_the_same(tmp_path: Path) -> None:
    folder = _write(save("grouped", tmp_path / "model"), **SAID, eos_token_id=[9], num_beams=2)
    first, second = (compile_model(folder, Store(tmp_path / name)) for name in ("one", "two"))
    store = Store(tmp_path / "one")
    read = files.decode(store.read(first.blob), ModelManifest, "the manifest")

    assert read.generation == Generation(**SAID)
    assert 9 in read.eos_token_ids
    assert any("num_beams 2" in notice for notice in first.notices)
    assert first.blob == second.blob


def test_a_bad_default_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    folder = _write(save("grouped", tmp_path / "model"), top_p=7)
    steps: list[str] = []

    with pytest.raises(InputError, match="top_p is 7"):
        compile_model(folder, Store(tmp_path / "s"), on_progress=lambda p: steps.append(p.step))
    assert "embedding" not in steps
    assert steps[-1] == "tracing the model"


def test_a_manifest_of_before_has_no_defaults(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plain = json.loads(store.read(compile_model(save("grouped", tmp_path / "m"), store).blob))
    del plain["generation"]

    found = files.decode(json.dumps(plain).encode(), ModelManifest, "the manifest")
    assert found.generation == Generation()


def _gguf(folder: Path, **said: float | str) -> Path:
    """A file whose metadata says this, in the types in which llama.cpp's converter writes it."""

    def more(writer: gguf.GGUFWriter) -> None:
        for name, value in said.items():
            add: dict[type, Callable[..., None]] = {
                float: writer.add_float32,
                int: writer.add_int32,
                str: writer.add_string,
            }
            add[type(value)](f"general.sampling.{name}", value)

    return write_gguf(folder / "model.gguf", more=more).path


def test_the_sampling_fields_of_a_gguf_file_are_defaults(tmp_path: Path) -> None:
    path = _gguf(tmp_path, temp=0.6, top_k=20, top_p=0.95, penalty_repeat=1.05)
    compiled = compile_model(path, Store(tmp_path / "store"))

    assert compiled.manifest.generation == Generation(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Generation()),
        ({"penalty_repeat": 1.5}, Generation(repetition_penalty=1.5)),
        ({"top_p": 0.5}, Generation(do_sample=True, top_p=0.5)),
        ({"temp": 0.0, "top_k": 5}, Generation(temperature=0, top_k=5)),
        ({"temp": -1.0}, Generation(temperature=0)),
        ({"temp": 0.5, "top_k": -1}, Generation(do_sample=True, temperature=0.5, top_k=0)),
    ],
)
def test_a_gguf_file_is_drawn_from_where_it_says_how(
    said: dict[str, float], expected: Generation, tmp_path: Path
) -> None:
    assert open_checkpoint(_gguf(tmp_path, **said)).generation() == Defaults(expected)


def test_sampling_fields_that_are_no_defaults_are_told(tmp_path: Path) -> None:
    path = _gguf(
        tmp_path,
        temp=1.0,
        min_p=0.05,
        xtc_probability=0.0,
        mirostat=2,
        mirostat_tau=5.0,
        penalty_last_n=64,
        sequence="top_k;temperature",
    )
    remarks = open_checkpoint(path).generation().remarks

    assert [remark.split(",")[0] for remark in remarks] == [
        "model.gguf says general.sampling.min_p 0.05",
        "model.gguf says general.sampling.mirostat 2",
        "model.gguf says general.sampling.penalty_last_n 64",
        "model.gguf says general.sampling.sequence 'top_k;temperature'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 1.5, "top_p is 1.5: .*<= 1"),
        ("penalty_repeat", 0.0, "repetition_penalty is 0"),
        ("temp", "warm", "temperature is 'warm'"),
        ("top_k", 1.5, "top_k is 1.5: Expected `int"),
        ("temp", float("nan"), "temperature is nan"),
    ],
)
def test_a_sampling_field_that_cannot_be_is_refused(
    name: str, value: float | str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"model.gguf: {message}"):
        open_checkpoint(_gguf(tmp_path, **{name: value})).generation()

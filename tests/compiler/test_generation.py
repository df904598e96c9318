"""Generation defaults: read, checked, kept in the manifest, told where they are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.generation import read_generation, shown
from edgeshard.errors import InputError
from edgeshard.schemas import files
from edgeshard.schemas.model import Generation, ModelManifest
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
    assert read_generation(tmp_path) == (Generation(), (), ())
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
    assert steps[-1] == "tokenizer"


def test_a_manifest_of_before_has_no_defaults(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plain = json.loads(store.read(compile_model(save("grouped", tmp_path / "m"), store).blob))
    del plain["generation"]

    found = files.decode(json.dumps(plain).encode(), ModelManifest, "the manifest")
    assert found.generation == Generation()

"""A `tokenizer.model` and a GGUF file of its pieces give the sentencepiece library's tokens."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

from edgeshard.artifacts.store import Store
from edgeshard.compiler import sentencepiece_model
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.pieces import Kind, Piece, Rules, bpe
from edgeshard.compiler.sentencepiece_model import PROBES, is_tie, read_model
from edgeshard.errors import InputError
from edgeshard.runtime.ask import ChatMessage
from edgeshard.runtime.text import load_text
from support.gguf_file import write_gguf
from support.sentencepiece_file import CORPUS, KINDS, sentencepiece_file, write_model
from support.tiny_llama import save

NUM_RANDOM = 400
LETTERS = "aabbab  \t\n.,-0123éñЖдя世界🙂<>sx="


def _texts() -> Iterator[str]:
    chooser = random.Random(7)
    words = [word for line in CORPUS for word in line.split()]
    yield from (*PROBES, *CORPUS, "\n".join(CORPUS))
    for _ in range(NUM_RANDOM):
        yield "".join(chooser.choices(LETTERS, k=chooser.randint(0, 40)))
        yield " ".join(chooser.choices(words, k=chooser.randint(1, 12)))


def _pieces(path: Path) -> list[Piece]:
    library = _library(path)
    return [
        Piece(library.id_to_piece(i), library.get_score(i), _kind(library, i))
        for i in range(library.get_piece_size())
    ]


def _kind(library: Any, token: int) -> Kind:
    if library.is_unknown(token):
        return "unknown"
    if library.is_control(token):
        return "control"
    return "byte" if library.is_byte(token) else "normal"


def _library(path: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("is_legacy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_the_librarys(kind: str, is_legacy: bool) -> None:
    path = sentencepiece_file(kind)
    found, _ = read_model(path, is_legacy=is_legacy)
    library = _library(path)

    num_ties = 0
    for text in _texts():
        ours, theirs = found.encode(text, add_special_tokens=False).ids, library.encode(text)
        if ours != theirs and "unigram" in kind:
            assert is_tie(_pieces(path), ours, theirs), text
            num_ties += 1
            continue
        assert ours == theirs, text
    assert num_ties < 0.02 * NUM_RANDOM


def test_only_equally_likely_cuts_are_a_tie() -> None:
    pieces = _pieces(sentencepiece_file("unigram"))
    normal = [i for i, piece in enumerate(pieces) if piece.kind == "normal"]
    likely, unlikely = normal[0], normal[-1]

    assert is_tie(pieces, [likely, unlikely], [unlikely, likely])
    assert not is_tie(pieces, [likely, likely], [unlikely, likely])


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_from_tokens_as_the_library_gives_it(kind: str) -> None:
    path = sentencepiece_file(kind)
    found, _ = read_model(path, is_legacy=False)
    library = _library(path)

    for text in CORPUS:
        tokens = library.encode(text)
        assert found.decode(tokens) == library.decode(tokens)


@pytest.mark.parametrize("kind", ["bpe", "bpe without prefix, with symbols"])
def test_a_gguf_file_of_the_pieces_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(sentencepiece_file(kind).read_bytes())
    # As llama.cpp's converter writes them: symbols with plain spaces.
    tokens = [one.piece.replace("▁", " ") if one.type == 4 else one.piece for one in model.pieces]

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([one.score for one in model.pieces])
        writer.add_token_types([one.type for one in model.pieces])
        writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)

    path = write_gguf(tmp_path / "model.gguf", vocab=len(tokens), more=write).path
    found = open_checkpoint(path).tokenizer()
    library = _library(sentencepiece_file(kind))

    assert found is not None
    assert found.backend_tokenizer.encode("x").ids == [1, *library.encode("x")]
    for text in _texts():
        tokens_found = found.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert tokens_found == library.encode(text), text


def _folder(path: Path, config: dict[str, object], kind: str = "bpe") -> Path:
    save("grouped", path)
    shutil.copy(sentencepiece_file(kind), path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return path


CONFIG: dict[str, object] = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken", "normalized": False},
    "added_tokens_decoder": {"100": {"content": "<|im_end|>", "special": True}},
    "chat_template": "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}"
    "{% endfor %}",
}


def test_a_folder_with_tokenizer_model_alone_compiles(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", CONFIG | {"added_tokens_decoder": {}})
    store = Store(tmp_path / "store")
    manifest = compile_model(folder, store).manifest
    text = load_text(store, manifest)
    library = _library(sentencepiece_file("bpe"))

    assert manifest.special_tokens["eos_token"] == "</s>"
    assert 2 in manifest.eos_token_ids
    for line in CORPUS:
        assert text.encode_raw(line) == (1, *library.encode(line))
    chat = text.encode_chat([ChatMessage("user", CORPUS[0])])
    assert (chat[0], chat[-1]) == (1, 2)
    assert text.decode(chat) == CORPUS[0]


@pytest.mark.parametrize("is_legacy", [True, False])
def test_behind_a_special_token_text_is_cut_as_transformers_cuts_it(
    is_legacy: bool, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, CONFIG | {"legacy": is_legacy, "add_bos_token": True})
    found = open_checkpoint(folder).tokenizer()
    expected = transformers.AutoTokenizer.from_pretrained(folder)

    assert found is not None
    for text in ("<s>quick brown fox</s>x", "a</s></s>b", "x<|im_end|>y"):
        assert found(text)["input_ids"] == expected(text)["input_ids"]


def test_without_tokenizer_config_special_tokens_come_from_the_model(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {})
    (folder / "tokenizer_config.json").unlink()
    found = open_checkpoint(folder).tokenizer()

    assert found is not None
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")
    assert found("x")["input_ids"][0] == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "char", "vocab_size": 60}, "neither BPE nor Unigram"),
        ({"treat_whitespace_as_suffix": True}, "marks spaces in another way"),
        ({"user_defined_symbols": ["<turn>"]}, "user-defined symbols and puts a space"),
    ],
)
def test_what_no_tokenizer_json_can_do_is_refused_by_name(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "tokenizer.model", **({"model_type": "bpe"} | settings))

    with pytest.raises(InputError, match=f"{said}.*give a checkpoint that has one"):
        read_model(path, is_legacy=False)


def test_a_pipeline_that_gives_other_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(pieces: Sequence[Piece], rules: Rules) -> tokenizers.Tokenizer:
        return bpe(pieces, rules._replace(prefix="none"))

    monkeypatch.setattr(sentencepiece_model, "bpe", wrong)

    with pytest.raises(InputError, match="other tokens than a tokenizer"):
        read_model(sentencepiece_file("bpe"), is_legacy=False)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")

    with pytest.raises(InputError, match="is no SentencePiece model"):
        read_model(path, is_legacy=False)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)

    with pytest.raises(InputError, match="install the extra `compile`"):
        read_model(sentencepiece_file("bpe"), is_legacy=False)

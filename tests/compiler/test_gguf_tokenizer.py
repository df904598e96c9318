"""A GGUF file's tokenizer gives the tokens of the one that the file was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.gguf_tokenizer import SPLITS
from edgeshard.errors import InputError
from edgeshard.runtime.ask import ChatMessage
from edgeshard.runtime.text import load_text
from support.gguf_file import write_gguf

CORPUS = (
    "The year 1984 had 366 days, 12 months and 8784 hours; 1985 had 365. It's o'clock, I'LL go, "
    "they've gone to the CamelCase HTTPServer.\n\n\n    if x == 42:\n        return 'a/b//c'\n\n"
    "Ça m'énerve: déjà vu! Привет, мир. 你好。世界 123456 Tom's well–known “quotes” ½ ²³ "
    "नमस्ते दुनिया  a  b   c\t\td \r\n ok /// ...!!!\n"
)
TEXTS = (
    CORPUS,
    CORPUS.upper(),
    "20,000,000 in 2024 and 7",
    " leading, trailing  ",
    "\n\n  \n\t x\n",
    "don't DON'T we'Ve",
    "XMLHttpRequest/URL//path\n",
    "e\u0301tude and étude",
    "العربية 12٣٤ ไทย 🙂🙃",
    "",
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# As the tokenizer.json of the models of that name have it.
SMOLLM = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
)
ORIGINALS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": SMOLLM,
    "refact": SMOLLM,
    **{name: _split(GGUF_PRE_TOKENIZER_SPLITS[name]) for name in ("llama-bpe", "dbrx", "tekken")},
    **{name: _split(GGUF_PRE_TOKENIZER_SPLITS[name]) for name in ("qwen2", "qwen35", "gpt-4o")},
}


@cache
def _trained_json() -> str:
    """Trained on whole lines, so that every split cuts through some of the merges."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = _split(r"[^\n]{1,12}|\n+")
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"],
    )
    found.train_from_iterator([CORPUS, CORPUS.upper()] * 3, trainer)
    return str(found.to_str())


def _trained(split: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer.from_str(_trained_json())
    found.pre_tokenizer = split
    return found


def _pieces(found: tokenizers.Tokenizer) -> list[str]:
    return sorted(found.get_vocab(), key=found.get_vocab().__getitem__)


def _merges(found: tokenizers.Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(found.to_str())["model"]["merges"]]


def _file(
    path: Path,
    tokens: Sequence[str],
    merges: Sequence[str],
    pre: str | None,
    more: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(list(tokens))
        writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
        writer.add_token_merges(list(merges))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        more(writer)

    return write_gguf(path / "model.gguf", vocab=len(tokens), more=write).path


def _backend(path: Path) -> Any:
    found = open_checkpoint(path).tokenizer()
    assert found is not None
    return found.backend_tokenizer


@pytest.mark.parametrize("pre", ORIGINALS)
def test_text_is_split_as_the_file_names_it(pre: str, tmp_path: Path) -> None:
    original = _trained(ORIGINALS[pre])
    found = _backend(_file(tmp_path, _pieces(original), _merges(original), pre))
    if SPLITS[pre].composed:
        original.normalizer = normalizers.NFC()

    for text in TEXTS:
        assert found.encode(text, add_special_tokens=False).ids == original.encode(text).ids


@pytest.mark.parametrize("pre", [name for name in ORIGINALS if name != "gpt-2"])
def test_another_split_gives_other_tokens(pre: str, tmp_path: Path) -> None:
    """What makes the test above able to fail: GPT-2's split, which a file may not fall back to."""
    original = _trained(ORIGINALS[pre])
    found = _backend(_file(tmp_path, _pieces(original), _merges(original), "gpt-2"))

    assert any(
        found.encode(t, add_special_tokens=False).ids != original.encode(t).ids for t in TEXTS
    )


def test_splits_that_transformers_knows_are_the_same_here() -> None:
    shared = {name for name in SPLITS if name in GGUF_PRE_TOKENIZER_SPLITS}

    assert len(shared) >= 12
    for name in shared:
        assert SPLITS[name].pattern == GGUF_PRE_TOKENIZER_SPLITS[name], name


def test_a_part_that_is_a_token_is_one_where_merges_do_not_reach_it(tmp_path: Path) -> None:
    original = _trained(ORIGINALS["llama-bpe"])
    tokens = [*_pieces(original), "zyzzyva"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = _backend(_file(tmp_path / "whole", tokens, _merges(original), "llama-bpe"))
    parts = _backend(_file(tmp_path / "parts", tokens, _merges(original), "dbrx"))

    assert whole.encode("zyzzyva", add_special_tokens=False).ids == [len(tokens) - 1]
    assert len(parts.encode("zyzzyva", add_special_tokens=False).ids) > 1


@pytest.mark.parametrize(
    ("pre", "more", "expected"),
    [
        ("llama-bpe", lambda _: None, [0]),
        ("llama-bpe", lambda w: w.add_add_bos_token(False), []),
        ("qwen2", lambda _: None, []),
        ("qwen2", lambda w: w.add_add_bos_token(True), [0]),
    ],
)
def test_a_text_begins_as_the_file_says(
    pre: str, more: Callable[[gguf.GGUFWriter], None], expected: list[int], tmp_path: Path
) -> None:
    original = _trained(ORIGINALS[pre])
    found = _backend(_file(tmp_path, _pieces(original), _merges(original), pre, more))

    assert found.encode("x").ids == [*expected, *original.encode("x").ids]


def test_control_tokens_and_the_template_reach_a_device(tmp_path: Path) -> None:
    original = _trained(ORIGINALS["qwen2"])
    template = "{% for m in messages %}<|begin|>{{ m.content }}<|end|>{% endfor %}"
    path = _file(
        tmp_path,
        _pieces(original),
        _merges(original),
        "qwen2",
        lambda writer: writer.add_chat_template(template),
    )
    store = Store(tmp_path / "store")
    text = load_text(store, compile_model(path, store).manifest)

    tokens = text.encode_chat([ChatMessage("user", "hours of 1984")])
    assert tokens == (0, *original.encode("hours of 1984").ids, 1)
    assert text.decode(tokens) == "hours of 1984"


@pytest.mark.parametrize(
    ("pre", "said"),
    [("poro-chat", "tokenizer.ggml.pre 'poro-chat'"), (None, "no tokenizer.ggml.pre")],
)
def test_an_unknown_split_is_refused_with_those_that_are_known(
    pre: str | None, said: str, tmp_path: Path
) -> None:
    original = _trained(ORIGINALS["gpt-2"])
    checkpoint = open_checkpoint(_file(tmp_path, _pieces(original), _merges(original), pre))

    with pytest.raises(InputError, match=rf"{said}.*supported: .*llama-bpe.*Hugging Face folder"):
        checkpoint.tokenizer()


def _broken(write: Callable[[gguf.GGUFWriter], None], path: Path) -> Path:
    return write_gguf(path / "model.gguf", more=write).path


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda w: w.add_tokenizer_model("bert"), "kind 'bert'; supported: gpt2, llama"),
        (lambda w: w.add_tokenizer_model("gpt2"), "without tokens"),
        (
            lambda w: (
                w.add_tokenizer_model("llama"),
                w.add_token_list(["<unk>", "a"]),
                w.add_token_scores([0.0]),
            ),
            "2 tokens and scores of 1",
        ),
        (
            lambda w: (
                w.add_tokenizer_model("gpt2"),
                w.add_tokenizer_pre("gpt-2"),
                w.add_token_list(["a", "b"]),
                w.add_token_types([1]),
            ),
            "2 tokens and types of 1",
        ),
        (
            lambda w: (
                w.add_tokenizer_model("gpt2"),
                w.add_tokenizer_pre("gpt-2"),
                w.add_token_list(["a", "b"]),
                w.add_token_merges(["a c"]),
            ),
            "the merges of .* cannot be read",
        ),
        (
            lambda w: (
                w.add_tokenizer_model("gpt2"),
                w.add_tokenizer_pre("gpt-2"),
                w.add_token_list(["a", "b"]),
                w.add_eos_token_id(7),
            ),
            "token 7 is eos, but has 2 tokens",
        ),
        (
            lambda w: (
                w.add_tokenizer_model("gpt2"),
                w.add_tokenizer_pre("llama-bpe"),
                w.add_token_list(["a", "b"]),
            ),
            "adds a bos token and names none",
        ),
        (
            lambda w: (
                w.add_tokenizer_model("gpt2"),
                w.add_token_list([str(i) for i in range(200)]),
            ),
            "200 tokens and embeds 128",
        ),
    ],
)
def test_what_is_not_whole_is_refused_by_name(
    write: Callable[[gguf.GGUFWriter], None], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        open_checkpoint(_broken(write, tmp_path)).tokenizer()

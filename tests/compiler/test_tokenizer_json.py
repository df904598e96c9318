"""A folder's `tokenizer.json` on a device: its own tokens, its own text, and pieces that add up.

transformers 5 makes the pipeline of some classes anew and drops a leading space under Llama's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgeshard.compiler.assets import read_text
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.runtime.text import Answer, TextModel
from support.tiny_llama import save

TEXTS = (
    *("Hello world", " leading", "  two  spaces ", "", " ", "don't stop", "line\n next"),
    *("x <|mark|> y", "x<|mark|>y", "<|mark|> <|mark|> z", "naïve café 😀 漢"),
)
TRAINED = ["hello world, a text with  spaces  in it", "Hello naïve café, don't stop"] * 4


def _metaspace(scheme: Any) -> Tokenizer:
    found = _pieces()
    found.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    found.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme=scheme, split=False)]
    )
    return found


def _normalised(*, prefix: bool) -> Tokenizer:
    """As Llama 2 has it: a mark for every space, and one in front."""
    found = _pieces()
    marks = [normalizers.Prepend("▁")] if prefix else []
    found.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    stripped = [decoders.Strip(" ", 1, 0)] if prefix else []
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    return found


def _pieces() -> Tokenizer:
    """Pieces with their bytes; marks of spaces are in them as in SentencePiece's."""
    found = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *data], show_progress=False
    )
    marked = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    found.pre_tokenizer = marked
    found.train_from_iterator(TRAINED, trainer)
    plain = json.loads(found.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] not in data]
    found = Tokenizer.from_str(json.dumps(plain))
    found.add_special_tokens(["<|mark|>"])
    found.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    found.pre_tokenizer = pre_tokenizers.Sequence([])
    return found


PIPELINES = {
    **{f"metaspace {scheme}": _metaspace(scheme) for scheme in ("always", "first", "never")},
    "normaliser with prefix": _normalised(prefix=True),
    "normaliser without": _normalised(prefix=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("grouped", tmp_path_factory.mktemp("model"))


def _device(folder: Path, tokenizer: Tokenizer, **said: object) -> TextModel:
    """What a device makes of the file."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | said), "utf-8")
    text = read_text(open_checkpoint(folder))
    assert text.tokenizer is not None
    return TextModel(text.tokenizer.encode(), None, text.special_tokens)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kind", [None, "LlamaTokenizer", "GemmaTokenizer"])
def test_a_device_has_the_files_own_tokens_and_text(
    name: str, kind: str | None, folder: Path
) -> None:
    written = PIPELINES[name]
    said = {} if kind is None else {"tokenizer_class": kind}
    device = _device(folder, written, **said)

    for text in TEXTS:
        tokens = device.encode_raw(text)
        assert list(tokens) == written.encode(text).ids, text
        assert device.decode(tokens) == written.decode(list(tokens)), text


@pytest.mark.parametrize("name", PIPELINES)
def test_a_device_agrees_with_transformers_where_that_keeps_the_file(
    name: str, folder: Path
) -> None:
    device = _device(folder, PIPELINES[name], tokenizer_class="PreTrainedTokenizerFast")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    for text in TEXTS:
        tokens = theirs(text)["input_ids"]
        assert list(device.encode_raw(text)) == tokens, text
        assert device.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True), text


@pytest.mark.parametrize("name", PIPELINES)
def test_pieces_add_up_wherever_the_prompt_ends(name: str, folder: Path) -> None:
    device = _device(folder, PIPELINES[name])

    for text in TEXTS:
        tokens = device.encode_raw(text)
        whole = device.decode(tokens)
        for cut in range(len(tokens) + 1):
            prompt = device.decode(tokens[:cut])
            if not whole.startswith(prompt):
                continue  # cut within a character
            answer = Answer(device, tokens[:cut], ())
            pieces = "".join(answer.push(token)[0] for token in tokens[cut:]) + answer.flush()
            assert prompt + pieces == whole, (text, cut)


def test_a_leading_space_survives_llamas_class(folder: Path) -> None:
    device = _device(folder, PIPELINES["normaliser with prefix"], tokenizer_class="LlamaTokenizer")

    assert device.decode(device.encode_raw("  two")) == "  two"
    assert len(device.encode_raw("  two")) > len(device.encode_raw(" two"))

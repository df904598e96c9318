"""Tiny SentencePiece models, trained by the library itself."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

from support.tiny_llama import home

CORPUS = (
    "The quick brown fox jumps over the lazy dog; it isn't 1984 any more, is it?",
    "def f(x):\n    return {'a': x[0] ** 2}  # a comment, 3.14159",
    "Ça m'énerve: déjà vu, naïve façade. Привет, мир! 你好。世界 こんにちは",
    "aaa aaaa aaaaa ababab abababab ---- ======== ........",
    "Four score and seven years ago our fathers brought forth on this continent a new nation.",
    "a  b   c    d     e        f <tag> 1 < 2 > 0xA",
)
# As Llama 2, Mistral and Phi-3 have it, as Gemma has it, and what the trainer does by itself.
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "bpe without prefix, with symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<turn>", "\n\n", "▁▁"],
    },
    "bpe without bytes": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {
        "character_coverage": 1.0,
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


def write_model(path: Path, **settings: Any) -> Path:
    """Train a model on `CORPUS`; the same settings give the same bytes."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=written,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **({"vocab_size": 480} | settings),
    )
    path.write_bytes(written.getvalue())
    return path


@cache
def sentencepiece_file(kind: str) -> Path:
    """A file of one of `KINDS`, made once in a test run; not to be changed."""
    folder = home() / "sentencepiece"
    folder.mkdir(exist_ok=True)
    return write_model(folder / f"{kind}.model", **KINDS[kind])

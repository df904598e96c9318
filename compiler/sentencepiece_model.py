"""SentencePiece's `tokenizer.model` as a `tokenizers` pipeline.

Rule: what comes out gives the tokens of the sentencepiece library itself, or is refused: it is
asked beside ours about `PROBES` and the model's own pieces every time that a model is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from edgeshard.compiler.pieces import SPACE, Kind, Piece, Prefix, Rules, bpe, unigram
from edgeshard.errors import InputError

PROBES = (
    "Hello, world! It's 1984; don't PANIC.",
    " a leading space",
    "trailing spaces  ",
    "two  spaces,   three,     five",
    "tabs\t\tand\nlines\r\n\n\nand more",
    "def f(x):\n    return {'a': x[0] ** 2}  # comment\n",
    "https://example.org/a?b=c&d=%20e",
    "1234567890 3.14159 1,000,000 ½ ² ٣",
    "Ça m'énerve, naïve façade; e\u0301tude",
    "Привет, мир!",
    "你好。世界 こんにちは 안녕하세요",
    "नमस्ते दुनिया สวัสดี مرحبا שלום",
    "🙂 👩‍👩‍👧 🇫🇷 x",
    "aaaaaaaaaaaa bababababab ----- ======== ....",
    "\uff26\uff35LL \ufb01 ligature \u00a0no-break",
    "<0x0A> is text",
    " ",
    "",
)
_KINDS: dict[int, Kind] = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user",
    5: "unused",
    6: "byte",
}
_UNIGRAM, _BPE = 1, 2
_MAX_PROBED_PIECES = 2000
_FLOAT32_ROUNDING = 1e-6


def read_model(path: Path, *, is_legacy: bool) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Read a model.

    Args:
        path: of `tokenizer.model`.
        is_legacy: text behind a special token begins with a space of its own, as the whole text.

    Returns:
        The pipeline, and the model's special tokens by role (`bos_token`, …).

    Raises:
        InputError: not a SentencePiece model, of a kind that `tokenizers` cannot do alike, or the
            library is not installed.
    """
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise InputError(
            f"{path} needs {error.name}: install the extra `compile`, or give tokenizer.json"
        ) from error
    proto: Any = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # of protobuf, or the library's own for a model it refuses
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no SentencePiece model: {line}; fetch it again") from error
    pieces = [_piece(one) for one in proto.pieces]
    normal = proto.normalizer_spec
    _check_kind(path, proto, pieces)
    prefix: Prefix = "always" if is_legacy else "first"
    rules = Rules(
        prefix=prefix if normal.add_dummy_prefix else "none",
        one_space=normal.remove_extra_whitespaces,
        charsmap=normal.precompiled_charsmap,
    )
    is_bpe = proto.trainer_spec.model_type == _BPE
    found = bpe(pieces, rules) if is_bpe else unigram(pieces, rules)
    for text in _probes(pieces):
        ours, theirs = found.encode(text, add_special_tokens=False).ids, library.encode(text)
        if ours != theirs and (is_bpe or not is_tie(pieces, ours, theirs)):
            raise InputError(
                f"{path} gives {text[:40]!r} other tokens than a tokenizer.json made from it; "
                "give a checkpoint that has one"
            )
    spec = proto.trainer_spec
    roles = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id}
    return found, {name: pieces[i].text for name, i in roles.items() if 0 <= i < len(pieces)}


def _piece(one: Any) -> Piece:
    kind = _KINDS[one.type]
    # Symbols are found in the text as it is, where spaces are not marked yet.
    return Piece(one.piece.replace(SPACE, " ") if kind == "user" else one.piece, one.score, kind)


def _check_kind(path: Path, proto: Any, pieces: list[Piece]) -> None:
    kinds = {piece.kind for piece in pieces}
    wrong = None
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        wrong = "is neither BPE nor Unigram"
    elif (
        proto.trainer_spec.treat_whitespace_as_suffix
        or not proto.normalizer_spec.escape_whitespaces
    ):
        wrong = "marks spaces in another way"
    elif "unused" in kinds:
        wrong = "has unused pieces"
    elif "user" in kinds and proto.normalizer_spec.add_dummy_prefix:
        wrong = "has user-defined symbols and puts a space before the text"
    if wrong:
        raise InputError(
            f"{path} {wrong}, which no tokenizer.json can do alike; give a checkpoint that has one"
        )


def _probes(pieces: Sequence[Piece]) -> Iterable[str]:
    own = [piece.text.replace(SPACE, " ") for piece in pieces if piece.kind == "normal"]
    step = max(1, len(own) // _MAX_PROBED_PIECES)
    return (*PROBES, *own[::step], " ".join(own[:: step * 4]))


def is_tie(pieces: Sequence[Piece], ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether a Unigram model finds two ways to cut a text equally likely.

    "..." and "." are as likely as "." and "..."; the order of rounded sums decides.
    """
    sums = [math.fsum(pieces[token].score for token in tokens) for tokens in (ours, theirs)]
    return math.isclose(*sums, rel_tol=_FLOAT32_ROUNDING)

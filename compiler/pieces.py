"""SentencePiece's two models as a `tokenizers` pipeline that gives the same tokens.

    text ─► tokens in it ─► characters normalised ─► prefix, "▁" for spaces ─► merges or lattice

A SentencePiece BPE model has no list of merges: of all neighbours, those are joined whose joint
piece has the highest score. So every cut of a piece in two is a merge, ranked by the piece's score.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPACE = "▁"

Kind = Literal["normal", "unknown", "control", "user", "unused", "byte"]
Prefix = Literal["none", "first", "always"]


class Piece(NamedTuple):
    """An entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: Kind


class Rules(NamedTuple):
    """What is done to text before it meets the vocabulary.

    Attributes:
        prefix: a space before the text (`first`), or also behind each token that was found in the
            text as it is (`always`).
        one_space: spaces at the ends go, several become one.
        charsmap: SentencePiece's compiled map of characters; empty: none.
    """

    prefix: Prefix
    one_space: bool = False
    charsmap: bytes = b""


def bpe(pieces: Sequence[Piece], rules: Rules) -> tokenizers.Tokenizer:
    """The pipeline of a BPE model, with byte fallback where it has all 256 bytes."""
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    normal = {piece.text for piece in pieces if piece.kind == "normal"}
    merges = [
        (piece.score, cut, (piece.text[:cut], piece.text[cut:]))
        for piece in pieces
        if piece.kind == "normal"
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in normal and piece.text[cut:] in normal
    ]
    # Two cuts of one piece have one rank in SentencePiece, where the left one in the text is first.
    merges.sort(key=lambda merge: merge[:2], reverse=True)
    model = models.BPE(
        vocab=ids,
        merges=[pair for _, _, pair in merges],
        unk_token=next((piece.text for piece in pieces if piece.kind == "unknown"), None),
        fuse_unk=True,
        byte_fallback=_has_bytes(pieces),
    )
    return _pipeline(model, pieces, rules)


def unigram(pieces: Sequence[Piece], rules: Rules) -> tokenizers.Tokenizer:
    """The pipeline of a Unigram model."""
    lowest = min((piece.score for piece in pieces if piece.kind == "normal"), default=0.0)
    # The lattice there knows normal pieces only; here the others lose against any way around them.
    scores = [
        (piece.text, piece.score if piece.kind == "normal" else lowest * len(piece.text) - 1)
        for piece in pieces
    ]
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == "unknown"), None)
    model = models.Unigram(scores, unk_id=unknown, byte_fallback=_has_bytes(pieces))
    return _pipeline(model, pieces, rules)


def marks(
    texts: Sequence[str], kinds: Sequence[Kind], *, strip_but: Collection[str] | None = None
) -> list[tokenizers.AddedToken]:
    """Tokens that are found in the text as they are: `control` ones are special, `user` ones not.

    Args:
        texts: of all tokens.
        kinds: of all tokens.
        strip_but: all but these take white space behind them; None: none does.
    """
    return [
        tokenizers.AddedToken(
            text,
            special=kind == "control",
            normalized=False,
            rstrip=strip_but is not None and text not in strip_but,
        )
        for text, kind in zip(texts, kinds, strict=True)
        if kind in ("control", "user")
    ]


def _has_bytes(pieces: Sequence[Piece]) -> bool:
    return sum(piece.kind == "byte" for piece in pieces) == 256


def _pipeline(model: models.Model, pieces: Sequence[Piece], rules: Rules) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(model)
    steps: list[normalizers.Normalizer] = []
    if rules.charsmap:
        steps.append(normalizers.Precompiled(rules.charsmap))
    if rules.one_space:
        # A prefix that stands before the first character alone must find the text's beginning.
        steps.append(normalizers.Strip(left=rules.prefix != "first"))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if rules.prefix == "always":
        steps.append(normalizers.Prepend(SPACE))
    if not rules.one_space or rules.prefix != "first":
        steps.append(normalizers.Replace(" ", SPACE))
    found.normalizer = normalizers.Sequence(steps)
    if rules.prefix == "first":
        # Metaspace adds no prefix to what begins with one: with `one_space` that is wanted, and
        # without it no space is left by now.
        found.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False),
            ]
        )
    plain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    has_prefix = rules.prefix != "none"
    found.decoder = decoders.Sequence(plain + has_prefix * [decoders.Strip(" ", left=1, right=0)])
    found.add_tokens(marks([piece.text for piece in pieces], [piece.kind for piece in pieces]))
    return found

"""The tokenizer that a GGUF file describes, as `tokenizers` has it.

    tokenizer.ggml.model   gpt2: byte-level BPE, its merges in the file
                           llama: SentencePiece, its scores in the file
    tokenizer.ggml.pre     of gpt2: the name of how text is split before merges

Rule: a name that is not in `SPLITS` is refused. Nothing else in the file says how to split, and a
wrong split gives wrong tokens for some texts. llama.cpp's `src/llama-vocab.cpp` has the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from edgeshard.compiler.pieces import Kind, Piece, Rules, bpe, marks
from edgeshard.errors import InputError

_KINDS: dict[int, Kind] = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user",
    5: "unused",
    6: "byte",
}
_WORD = r"[^\r\n\p{L}\p{N}]?"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHERS, _OTHERS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


class Split(NamedTuple):
    """How text is split.

    Attributes:
        pattern: of the parts; None: GPT-2's.
        digits: each digit is a part of its own, before all else.
        whole: a part that is in the vocabulary is one token, whatever the merges say.
        begins: the text begins with the first token where the file does not say.
        composed: characters are composed (NFC) first.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False


_LLAMA3 = rf"{_SHORT}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}|{_REST}"
_QWEN2 = rf"{_SHORT}|{_WORD}\p{{L}}+|\p{{N}}|{_OTHERS}|{_REST}"
_QWEN35 = rf"{_SHORT}|{_WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_OTHERS_OR_SLASH}|{_REST}"
_GPT4O = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_SHORT}?|{_WORD}{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}|{_OTHERS_OR_SLASH}|{_REST}"
)
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("gpt-2", "a.x-4.0", "mellum", "olmo", "phi-2"), Split()),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"),
        Split(digits=True),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0"),
        Split(_LLAMA3, whole=True, begins=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split(_LLAMA3)),
    "qwen2": Split(_QWEN2, composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez"), Split(_QWEN2)),
    "qwen35": Split(_QWEN35),
    "tekken": Split(_TEKKEN, whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split(_GPT4O)),
}


_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_tokenizer(
    path: Path, architecture: str, fields: Mapping[str, Any]
) -> transformers.PreTrainedTokenizerBase:
    """Make a file's tokenizer.

    Args:
        path: of the file, for messages.
        architecture: as llama.cpp calls it.
        fields: metadata by name.

    Raises:
        InputError: of a kind that is not known here, or not whole.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise InputError(
            f"{path} has a tokenizer of the kind {kind!r}; supported: gpt2, llama; "
            "give the Hugging Face folder"
        )
    texts, kinds = _vocabulary(path, fields)
    if kind == "gpt2":
        split = _split(path, fields)
        begins = split.begins
        backend = _byte_level(path, fields, split, texts)
        backend.add_tokens(marks(texts, kinds))
    else:
        begins = True
        backend = _sentencepiece(path, fields, texts, kinds)
        if (
            architecture == "phi3"
        ):  # as in the tokenizer.json of Phi-3; no field of the file says it
            backend.add_tokens(marks(texts, kinds, strip_but=_NEVER_STRIP))
    special = _special_tokens(path, fields, texts, is_sentencepiece=kind == "llama")
    backend.post_processor = _ends(path, fields, texts, special, begins=begins)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=fields.get("tokenizer.chat_template"),
        **{f"{role}_token": text for role, text in special.items()},
    )


def _vocabulary(path: Path, fields: Mapping[str, Any]) -> tuple[list[str], list[Kind]]:
    texts = [str(text) for text in fields.get("tokenizer.ggml.tokens") or ()]
    if not texts:
        raise InputError(f"{path} has a tokenizer without tokens; fetch it again")
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(texts)
    if len(types) != len(texts):
        raise InputError(
            f"{path} has {len(texts)} tokens and types of {len(types)}; fetch it again"
        )
    return texts, [_KINDS.get(int(number), "normal") for number in types]


def _split(path: Path, fields: Mapping[str, Any]) -> Split:
    name = fields.get("tokenizer.ggml.pre")
    if name not in SPLITS:
        said = "no tokenizer.ggml.pre" if name is None else f"tokenizer.ggml.pre {name!r}"
        raise InputError(
            f"{path} has {said}: how text is split before merges is not known; supported: "
            f"{', '.join(sorted(SPLITS))}; give the Hugging Face folder"
        )
    return SPLITS[name]


def _byte_level(
    path: Path, fields: Mapping[str, Any], split: Split, texts: Sequence[str]
) -> tokenizers.Tokenizer:
    cut = [str(pair).partition(" ") for pair in fields.get("tokenizer.ggml.merges") or ()]
    try:
        model = models.BPE(
            vocab={text: number for number, text in enumerate(texts)},
            merges=[(left, right) for left, _, right in cut],
            ignore_merges=split.whole,
        )
    except Exception as error:  # the binding raises plain Exception
        raise InputError(f"the merges of {path} cannot be read: {error}; fetch it again") from error
    found = tokenizers.Tokenizer(model)
    if split.composed:
        found.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(split.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    found.pre_tokenizer = pre_tokenizers.Sequence(steps)
    found.decoder = decoders.ByteLevel()
    return found


def _sentencepiece(
    path: Path, fields: Mapping[str, Any], texts: Sequence[str], kinds: Sequence[Kind]
) -> tokenizers.Tokenizer:
    scores = fields.get("tokenizer.ggml.scores") or ()
    if len(scores) != len(texts):
        raise InputError(
            f"{path} has {len(texts)} tokens and scores of {len(scores)}; fetch it again"
        )
    pieces = [Piece(t, float(s), k) for t, s, k in zip(texts, scores, kinds, strict=True)]
    has_prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    return bpe(pieces, Rules("always" if has_prefix else "none"))


def _special_tokens(
    path: Path, fields: Mapping[str, Any], texts: Sequence[str], *, is_sentencepiece: bool
) -> dict[str, str]:
    """Texts of special tokens by role; what SentencePiece files leave unsaid is as in Llama's."""
    defaults = {"bos": 1, "eos": 2, "unk": 0} if is_sentencepiece else {}
    found = {}
    for role, key in _ROLES.items():
        number = fields.get(f"tokenizer.ggml.{key}_token_id", defaults.get(role))
        if number is None:
            continue
        if not 0 <= int(number) < len(texts):
            raise InputError(
                f"{path} says that token {number} is {role}, but has {len(texts)} tokens; "
                "fetch it again"
            )
        found[role] = texts[int(number)]
    return found


def _ends(
    path: Path,
    fields: Mapping[str, Any],
    texts: Sequence[str],
    special: Mapping[str, str],
    *,
    begins: bool,
) -> processors.PostProcessor:
    """What puts the first and last token around a text, where the file wants them."""
    wanted = {
        "bos": bool(fields.get("tokenizer.ggml.add_bos_token", begins)),
        "eos": bool(fields.get("tokenizer.ggml.add_eos_token", False)),
    }
    for role, is_wanted in wanted.items():
        if is_wanted and role not in special:
            raise InputError(f"{path} adds a {role} token and names none; fetch it again")
    around = {role: [special[role]] if wanted[role] else [] for role in wanted}
    return processors.TemplateProcessing(
        single=[*around["bos"], "$A", *around["eos"]],
        special_tokens=[(text, texts.index(text)) for found in around.values() for text in found],
    )

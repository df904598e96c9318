"""Generation defaults of a checkpoint: `generation_config.json`, as far as requests have them.

Rule: what would change answers and cannot be a default here is told, never silently left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from edgeshard.errors import InputError
from edgeshard.schemas.model import Generation

FILE = "generation_config.json"
# Settings of transformers that change answers, with the values at which they do nothing.
_OTHERS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "length_penalty"), (1, 1.0)),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (0, 0.0)),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens", "top_h"), (0,)),
    **dict.fromkeys(
        (
            *(
                "penalty_alpha",
                "bad_words_ids",
                "sequence_bias",
                "guidance_scale",
                "force_words_ids",
            ),
            *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
            *("forced_eos_token_id", "exponential_decay_length_penalty", "stop_strings"),
            *("constraints", "watermarking_config", "prompt_lookup_num_tokens"),
        ),
        (),
    ),
}


def read_generation(folder: Path) -> tuple[Generation, tuple[int, ...], tuple[str, ...]]:
    """Read a folder's defaults.

    Returns:
        The defaults, further end tokens, and remarks on what is left out.

    Raises:
        InputError: the file cannot be read, or a value is out of its range.
    """
    path = folder / FILE
    if not path.is_file():
        return Generation(), (), ()
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(plain, dict):
        raise InputError(f"{path} is not a JSON object")
    said = {name: value for name, value in plain.items() if value is not None}
    known = {field.name: field.type for field in msgspec.structs.fields(Generation)}
    values = {}
    for name in known.keys() & said.keys():
        try:
            values[name] = msgspec.convert(said[name], known[name])
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: {name} is {said[name]!r}: {error}") from error
    return Generation(**values), tuple(_ends(path, said)), tuple(_remarks(said))


def _ends(path: Path, said: dict[str, Any]) -> Iterable[int]:
    found = said.get("eos_token_id", [])
    tokens = found if isinstance(found, list) else [found]
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise InputError(
                f"{path}: eos_token_id is {found!r}; give a token id or a list of them"
            )
    return tokens


def _remarks(said: dict[str, Any]) -> Iterable[str]:
    for name, neutral in _OTHERS.items():
        if name in said and said[name] not in (*neutral, False, [], {}):
            yield f"{FILE} says {name} {said[name]!r}, which is no default here and is left out"


def shown(generation: Generation) -> str:
    """The defaults in words; empty where there are none."""
    names = ["repetition_penalty", "max_new_tokens"]
    if generation.do_sample:
        names = ["temperature", "top_k", "top_p", *names]
    found = [(name, getattr(generation, name)) for name in names]
    words = [f"{name} {value:g}" for name, value in found if value is not None]
    return ", ".join([*(["drawn"] if generation.do_sample else []), *words])

"""Generation defaults of a checkpoint, as far as requests have them.

    generation_config.json   of a Hugging Face folder
    general.sampling.*       of a GGUF file, named as llama.cpp's `src/llama-arch.cpp` names them

Rule: what would change answers and cannot be a default here is told, never silently left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgeshard.errors import InputError
from edgeshard.schemas.model import Generation

FILE = "generation_config.json"
FIELDS = "general.sampling."
_FIELD_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "penalty_repeat": "repetition_penalty",
}
# Further fields that change answers, with the values at which they do nothing here.
_OTHER_FIELDS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("min_p", "xtc_probability", "mirostat"), (0, 0.0)),
    "penalty_last_n": (-1,),
    "sequence": (),
}
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


class Defaults(NamedTuple):
    """What a checkpoint says of generating: defaults, further end tokens, what is left out."""

    generation: Generation
    ends: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


def read_generation(folder: Path) -> Defaults:
    """Read a folder's defaults.

    Raises:
        InputError: the file cannot be read, or a value is out of its range.
    """
    path = folder / FILE
    if not path.is_file():
        return Defaults(Generation())
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(plain, dict):
        raise InputError(f"{path} is not a JSON object")
    said = {name: value for name, value in plain.items() if value is not None}
    return Defaults(_checked(path, said), tuple(_ends(path, said)), tuple(_remarks(said)))


def fields_generation(path: Path, fields: Mapping[str, Any]) -> Defaults:
    """The defaults in a GGUF file's metadata.

    No field says whether to draw. A file that names a temperature above 0, `top_k` or `top_p` is
    meant to be drawn from: llama.cpp does, and its converter takes these values from configurations
    whose `do_sample` it has no field for. A temperature of 0 or less is greedy there and here.

    Args:
        path: of the file, for messages.
        fields: all metadata by name.

    Raises:
        InputError: a value is out of its range.
    """
    found = {
        name.removeprefix(FIELDS): value
        for name, value in fields.items()
        if name.startswith(FIELDS)
    }
    said = {ours: _short(found[theirs]) for theirs, ours in _FIELD_NAMES.items() if theirs in found}
    for name in ("temperature", "top_k"):  # 0 and less: greedy, and all tokens
        if isinstance(said.get(name), int | float):
            said[name] = max(said[name], 0)
    drawn = said.keys() & {"temperature", "top_k", "top_p"}
    said["do_sample"] = bool(drawn) and said.get("temperature") != 0
    remarks = (
        f"{path.name} says {FIELDS}{name} {_short(found[name])!r}, which is no default here and is "
        "left out"
        for name, neutral in _OTHER_FIELDS.items()
        if name in found and found[name] not in neutral
    )
    return Defaults(_checked(path, said), remarks=tuple(remarks))


def _short(value: Any) -> Any:
    """A float32 as it was written: 0.95, not 0.949999988."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _checked(path: Path, said: Mapping[str, Any]) -> Generation:
    values = {}
    for field in msgspec.structs.fields(Generation):
        if field.name not in said:
            continue
        try:
            values[field.name] = msgspec.convert(said[field.name], field.type)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: {field.name} is {said[field.name]!r}: {error}") from error
    return Generation(**values)


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

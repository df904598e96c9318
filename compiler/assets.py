"""What travels with the units: tokenizer, chat template, end tokens and generation defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.schemas.model import Generation

if TYPE_CHECKING:
    import transformers


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """What turns text into tokens on a device, and ends an answer.

    Attributes:
        tokenizer: as `tokenizer.json` has it.
        remarks: what a person should know of the defaults.
    """

    tokenizer: str | None
    chat_template: str | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]
    generation: Generation
    remarks: tuple[str, ...]


def read_text(checkpoint: Checkpoint) -> Text:
    """Read the tokenizer and what belongs to it.

    Raises:
        InputError: one of the files cannot be used.
    """
    tokenizer = checkpoint.tokenizer()
    generation, ends, remarks = checkpoint.generation()
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    template = getattr(tokenizer, "chat_template", None)
    return Text(
        tokenizer=None if tokenizer is None else tokenizer.backend_tokenizer.to_str(),
        chat_template=template if isinstance(template, str) else None,
        special_tokens={
            name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None)
        },
        eos_token_ids=_eos_token_ids(checkpoint, tokenizer, ends),
        generation=generation,
        remarks=remarks,
    )


def _eos_token_ids(
    checkpoint: Checkpoint,
    tokenizer: transformers.PreTrainedTokenizerBase | None,
    ends: tuple[int, ...],
) -> tuple[int, ...]:
    """Every token that may end an answer: from configuration, defaults and tokenizer."""
    found = set(ends)
    sources: list[object] = [checkpoint.config.eos_token_id]
    if tokenizer is not None:
        sources.append(tokenizer.eos_token_id)
    for source in sources:
        if isinstance(source, int):
            found.add(source)
        elif isinstance(source, list | tuple):
            found.update(int(token) for token in source)
    return tuple(sorted(found))

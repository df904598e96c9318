"""What travels with the units: tokenizer, chat template, end tokens and generation defaults."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import Generation


@dataclass(frozen=True)
class TextAssets:
    """Blobs and names that turn text into tokens on a device."""

    tokenizer: Blob | None
    chat_template: Blob | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]
    generation: Generation
    remarks: tuple[str, ...]


def write_text_assets(store: Store, checkpoint: Checkpoint) -> TextAssets:
    """Store the tokenizer as `tokenizer.json` and the chat template as it is."""
    tokenizer = checkpoint.tokenizer()
    generation, ends, remarks = checkpoint.generation()
    eos = _eos_token_ids(checkpoint, tokenizer, ends)
    if tokenizer is None:
        return TextAssets(None, None, {}, eos, generation, remarks)
    text = tokenizer.backend_tokenizer.to_str()
    template = tokenizer.chat_template
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name)}
    return TextAssets(
        store.put(text.encode(), ".json"),
        store.put(template.encode(), ".jinja") if isinstance(template, str) else None,
        special,
        eos,
        generation,
        remarks,
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

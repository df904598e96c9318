"""What travels with the units: tokenizer, chat template, end tokens and rotary tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.errors import InputError
from edgeshard.schemas.common import Blob

STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class TextAssets:
    """Blobs and names that turn text into tokens on a device."""

    tokenizer: Blob | None
    chat_template: Blob | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]


def write_text_assets(store: Store, checkpoint: Checkpoint) -> TextAssets:
    """Store the tokenizer as `tokenizer.json` and the chat template as it is."""
    tokenizer = checkpoint.tokenizer()
    eos = _eos_token_ids(checkpoint, tokenizer)
    if tokenizer is None:
        return TextAssets(None, None, {}, eos)
    text = tokenizer.backend_tokenizer.to_str()
    template = tokenizer.chat_template
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name)}
    return TextAssets(
        store.put(text.encode(), ".json"),
        store.put(template.encode(), ".jinja") if isinstance(template, str) else None,
        special,
        eos,
    )


def _eos_token_ids(
    checkpoint: Checkpoint, tokenizer: transformers.PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """Every token that may end an answer: from configuration, defaults and tokenizer."""
    found: set[int] = set()
    sources: list[object] = [checkpoint.config.eos_token_id]
    if (checkpoint.path / "generation_config.json").is_file():
        defaults = transformers.GenerationConfig.from_pretrained(checkpoint.path)
        sources.append(defaults.eos_token_id)
    if tokenizer is not None:
        sources.append(tokenizer.eos_token_id)
    for source in sources:
        if isinstance(source, int):
            found.add(source)
        elif isinstance(source, list | tuple):
            found.update(int(token) for token in source)
    return tuple(sorted(found))


def rotary_tables(
    config: transformers.PretrainedConfig, factor: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """Cosines and sines `[max_context, head_dim / 2]` from the model's own rotary module.

    Args:
        config: of the model.
        factor: what both tables are multiplied by; see `fold_scale`.

    Raises:
        InputError: the scaling depends on the length of the text, so that no table can hold it.
    """
    parameters = config.rope_parameters or {}
    kind = str(parameters.get("rope_type", "default"))
    if kind not in STATIC_ROPE:
        known = ", ".join(STATIC_ROPE)
        raise InputError(f"RoPE scaling {kind!r} is not supported; supported: {known}")
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError("partial rotary embedding is not supported")
    module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    positions = torch.arange(config.max_position_embeddings)[None]
    with torch.no_grad():
        cos, sin = module(torch.empty(1, 1, 1), positions)
    half = cos.shape[-1] // 2
    return {
        "cos": np.ascontiguousarray(cos[0, :, :half].numpy() * np.float32(factor)),
        "sin": np.ascontiguousarray(sin[0, :, :half].numpy() * np.float32(factor)),
    }

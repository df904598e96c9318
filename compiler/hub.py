"""A checkpoint by its hub id, such as `HuggingFaceTB/SmolLM2-135M-Instruct`: only what is needed.

Weights as safetensors, the configuration and the tokenizer are fetched into the hub's own cache;
pickled weights, other formats and pictures stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub

from edgeshard.errors import InputError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NEEDED = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("model.safetensors", "model-*-of-*.safetensors"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja"),
)


def is_hub_id(path: Path) -> bool:
    """Whether a path that leads nowhere may be a hub id: an owner, a slash and a name."""
    return _ID.fullmatch(path.as_posix()) is not None and path.suffix != ".gguf"


def fetch(path: Path, download: Callable[..., str] = huggingface_hub.snapshot_download) -> Path:
    """Fetch a checkpoint's files, or find them in the hub's cache.

    Args:
        path: the id.
        download: what fetches; `huggingface_hub.snapshot_download`.

    Returns:
        The folder that holds them.

    Raises:
        InputError: there is no such checkpoint, no right to read it, or no network.
    """
    try:
        return Path(download(repo_id=path.as_posix(), allow_patterns=list(NEEDED)))
    except Exception as error:  # of the hub, of the network below it, or of the disk
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"no folder {path} here, and it cannot be fetched from the hub: {first[:200]}; "
            "give a folder or a .gguf file"
        ) from error

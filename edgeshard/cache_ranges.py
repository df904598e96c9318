"""What a model's own shards show of their keys and values on a text, one block after the other.

    pieces of text ─ raw or as a conversation ─► tokens ─ embedding ─ block 0 ─ block 1 ─ …
                                                                        └─► keys, values

One block is in memory at a time, so that any model that can be compiled can be shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.compiler.cache_scales import Floats, ShowCache
from edgeshard.runtime.ask import ChatMessage
from edgeshard.runtime.session import ShardSession
from edgeshard.runtime.text import TextModel, load_text
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.shard import ShardManifest
from edgeshard.windows import windows_of

WINDOW = 128
MOST_WINDOWS = 16
UNNAMED = "sha256:" + "0" * 64  # of a manifest that is not in the store yet


def cache_shower(store: Store, text: str) -> ShowCache:
    """What shows the keys and values of a model that is being compiled into a store.

    Args:
        store: holds the model's units.
        text: like what the model is for; `MOST_WINDOWS` windows of it are read, every other one as
            what a user says where the model has a chat template.
    """

    def show(model: ModelManifest) -> Iterator[tuple[Floats, Floats]]:
        return show_cache(store, model, _prompts(load_text(store, model), text, model))

    return show


def show_cache(
    store: Store, model: ModelManifest, prompts: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[Floats, Floats]]:
    """Keys and values `[T, kv_heads, D]` of one block after the other, on prompts `[1, S]`.

    Raises:
        ArtifactError: a unit is not in the store as it was put there.
        DeviceError: ONNX Runtime failed.
    """
    states: list[NDArray[Any]] = list(prompts)
    context = max(ids.shape[1] for ids in states)
    for index in range(model.num_blocks + 1):
        unit = model.units[index]
        units = range(index, index + 1)
        shard = ShardManifest.of(model, UNNAMED, units, unit.graph, unit.weights)
        session = ShardSession.open(store, shard, context=context)
        shown: list[list[Floats]] = []
        for number, values in enumerate(states):
            states[number] = session.run(0, [0], values).copy()
            shown.append([held.swapaxes(0, 1).copy() for held in session.held(0, values.shape[1])])
        session.close()
        if index:
            keys, values = (np.concatenate(parts) for parts in zip(*shown, strict=True))
            yield keys, values


def _prompts(model: TextModel, text: str, manifest: ModelManifest) -> list[NDArray[np.int64]]:
    """Tokens `[1, S]` of each window, with whatever a request puts before them."""
    prompts = []
    for number, window in enumerate(windows_of(model.encode_raw(text), WINDOW, MOST_WINDOWS)):
        piece = model.decode(window[0].tolist())
        is_said = number % 2 and manifest.chat_template is not None
        prompts.append(_said(model, piece) if is_said else model.encode_raw(piece))
    return [np.array([ids[: manifest.max_context]], np.int64) for ids in prompts]


def _said(model: TextModel, piece: str) -> Sequence[int]:
    return model.encode_chat([ChatMessage("user", piece)])

"""Decode greedily with a shard of a whole model in plain ONNX Runtime; nothing of ours is imported.

python examples/plain_shard.py SHARD.onnx NUM_TOKENS TOKEN…

Works with shards of every target: what a graph takes says which one it is.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

CONTEXT = 256
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def empty_cache(session: ort.InferenceSession) -> dict[str, NDArray[Any]]:
    """Keys and values of no position: none (`past`), or room for a whole context (`C` or fixed)."""
    free = {"B": 1, "past": 0, "C": CONTEXT}
    return {
        value.name: np.zeros([free.get(axis, axis) for axis in value.shape], TYPES[value.type])
        for value in session.get_inputs()
        if ".past_" in value.name
    }


def positions(names: set[str], past: int, length: int) -> dict[str, NDArray[Any]]:
    """Where the new tokens stand, as the shard's target wants to be told."""
    if "position_ids" in names:
        return {"position_ids": np.arange(past, past + length, dtype=np.int64)[None]}
    return {
        "seqlens_k": np.array([past + length - 1], np.int32),
        "total_sequence_length": np.array([past + length], np.int32),
    }


def decode(path: str, num_tokens: int, prompt: Sequence[int]) -> list[int]:
    """The likeliest next token, again and again."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    cache = empty_cache(session)
    presents = [name.replace(".past_", ".present_") for name in cache]
    found: list[int] = []
    tokens, past = list(prompt), 0
    for _ in range(num_tokens):
        inputs = {
            "token_ids": np.array([tokens], np.int64),
            "logit_positions": np.array([len(tokens) - 1], np.int64),
            **positions(names, past, len(tokens)),
            **cache,
        }
        logits, *kept = session.run(["logits", *presents], inputs)
        cache = dict(zip(cache, kept, strict=True))
        past += len(tokens)
        tokens = [int(logits[0, -1].argmax())]
        found += tokens
    return found


if __name__ == "__main__":
    print(*decode(sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]]))

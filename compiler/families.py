"""The families that compile, each with the small configurations that prove it.

The tests build every configuration below with random weights, compile it and compare its tokens
with transformers'. So a family stands here only together with its proof, and what is printed as
supported is what was tested. Settings are those of the family's `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]
_WINDOW = {"sliding_window": 8}
_LAYERS = ("sliding_attention", "sliding_attention", "full_attention")
_LONG = {
    "factor": 1.6,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 160,
}


@dataclass(frozen=True)
class Family:
    """Models that share a `model_type`.

    Attributes:
        title: whose models these are.
        proofs: what is tested, by what is special in it.
    """

    title: str
    proofs: Mapping[str, Settings]


def _rope(kind: str, **settings: Any) -> Settings:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **settings}}


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "Llama 2, Llama 3, SmolLM2",
        {
            "RoPE scaling linear": _rope("linear", factor=4.0),
            "RoPE scaling dynamic": _rope("dynamic", factor=4.0),
            "RoPE scaling yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=64),
            "RoPE scaling llama3": _rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
            "RoPE scaling longrope": _rope("longrope", **_LONG),
            "biases, GELU": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
        },
    ),
    "mistral": Family(
        "Mistral, Ministral",
        {
            "sliding window": _WINDOW,
            "no window": {"sliding_window": None, "tie_word_embeddings": True},
        },
    ),
    "qwen2": Family(
        "Qwen2, Qwen2.5",
        {
            "biases of queries, keys and values": {"tie_word_embeddings": True},
            "a window in the later blocks": {
                **_WINDOW,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
        },
    ),
    "qwen3": Family("Qwen3", {"norms of queries and keys": {"tie_word_embeddings": True}}),
    "smollm3": Family("SmolLM3", {"blocks without positions": {"no_rope_layers": [1, 0, 1]}}),
    "phi3": Family(
        "Phi-3, Phi-3.5, Phi-4",
        {
            "packed projections, a window": _WINDOW,
            "half of the channels rotated": {
                "hidden_size": 128,
                "head_dim": 32,
                **_rope("default", partial_rotary_factor=0.5),
            },
            "half of the channels rotated, RoPE scaling longrope": {
                "hidden_size": 128,
                "head_dim": 32,
                "original_max_position_embeddings": 160,
                **_rope("longrope", **_LONG, partial_rotary_factor=0.5),
            },
        },
    ),
    "olmo2": Family(
        "OLMo 2", {"norms of all queries and of all keys, norms behind the products": {}}
    ),
    "olmo3": Family(
        "OLMo 3", {"windows in most blocks": {**_WINDOW, "layer_types": list(_LAYERS)}}
    ),
    "exaone4": Family(
        "EXAONE 4",
        {
            "windows in most blocks, the others without positions": {
                **_WINDOW,
                "layer_types": list(_LAYERS),
            }
        },
    ),
    "seed_oss": Family(
        "Seed-OSS", {"biases of queries, keys and values": {"attention_bias": True}}
    ),
    "arcee": Family("Arcee AFM", {"squared ReLU without a gate": {}}),
    "gemma": Family("Gemma", {"norms from one, a scaled embedding": {"tie_word_embeddings": True}}),
    "granite": Family(
        "Granite 3",
        {
            "multipliers": {
                "attention_multiplier": 0.2,
                "embedding_multiplier": 12.0,
                "residual_multiplier": 0.5,
                "logits_scaling": 4.0,
            },
        },
    ),
    "gemma2": Family(
        "Gemma 2",
        {
            "capped scores and logits, windows in turns": {
                **_WINDOW,
                "query_pre_attn_scalar": 20,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 10.0,
            }
        },
    ),
    "gemma3_text": Family(
        "Gemma 3 (text)",
        {
            "two rotary tables, windows in most blocks": {
                **_WINDOW,
                "query_pre_attn_scalar": 20,
                "layer_types": list(_LAYERS),
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                    "full_attention": {
                        "rope_type": "linear",
                        "rope_theta": 1_000_000.0,
                        "factor": 8.0,
                    },
                },
            }
        },
    ),
}


def listing() -> str:
    """The families and what is proved of each, a line for one."""
    width = max(map(len, FAMILIES))
    lines = [
        f"{name:<{width}}  {family.title}: {', '.join(family.proofs)}"
        for name, family in FAMILIES.items()
    ]
    return "\n".join(lines)

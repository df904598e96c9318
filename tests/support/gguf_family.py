"""GGUF files of small random models, laid out as llama.cpp's `convert_hf_to_gguf.py` does.

Names go through the `gguf` package's map from Hugging Face's side, as they do there. What else that
program does to a family is in `write_family`, and which file of it says so:

    conversion/base.py     sizes, rotary base and scaling
    conversion/llama.py    rows of queries and keys by rotary pairs; Llama 3's frequencies
    conversion/gemma.py    norms from one; windows, caps, the second rotary base
    conversion/granite.py  multipliers
    conversion/phi.py      rotated channels, factors of long texts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from support.tiny_family import Reference, config, reference_of
from support.tiny_llama import home

PERMUTED = {"llama", "smollm3", "arcee", "granite"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 160,
}


@dataclass(frozen=True)
class Case:
    """A model that a GGUF file of `architecture` holds; `seed` leaves no near tie in its texts."""

    architecture: str
    model_type: str
    settings: Mapping[str, Any]
    seed: int = 0


CASES: dict[str, Case] = {
    "llama": Case("llama", "llama", {}),
    "llama, biases": Case("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, RoPE scaling llama3": Case("llama", "llama", {"rope_parameters": LLAMA3}, seed=1),
    "llama, RoPE scaling linear": Case(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 4.0}},
    ),
    "qwen2, RoPE scaling yarn": Case(
        "qwen2",
        "qwen2",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen3": Case("qwen3", "qwen3", {"tie_word_embeddings": True}),
    "smollm3": Case("smollm3", "smollm3", {"num_hidden_layers": 5}),
    "arcee": Case("arcee", "arcee", {}),
    "olmo2": Case("olmo2", "olmo2", {}),
    "granite": Case(
        "granite",
        "granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "phi3, a window": Case("phi3", "phi3", {"sliding_window": 8}),
    "phi3, half of the channels rotated, RoPE scaling longrope": Case(
        "phi3",
        "phi3",
        {
            "hidden_size": 128,
            "head_dim": 32,
            "original_max_position_embeddings": 160,
            "rope_parameters": LONG,
        },
    ),
    "gemma": Case("gemma", "gemma", {"tie_word_embeddings": True}, seed=1),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {
            "sliding_window": 8,
            "initializer_range": 0.02,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 0.05,
            "final_logit_softcapping": 0.5,
            "tie_word_embeddings": True,
        },
        seed=5,
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1_000_000.0,
                    "factor": 8.0,
                },
            },
        },
        seed=1,
    ),
}


@cache
def reference(case: str) -> Reference:
    """The model of a case, as transformers computes it."""
    chosen = CASES[case]
    return reference_of(config(chosen.model_type, dict(chosen.settings)), chosen.seed)


@cache
def gguf_file(case: str) -> Path:
    """The model of a case as a GGUF file, made once in a test run; not to be changed."""
    path = home() / "gguf" / f"{case}.gguf"
    path.parent.mkdir(exist_ok=True)
    write_family(path, CASES[case].architecture, reference(case).model)
    return path


def write_family(
    path: Path,
    architecture: str,
    model: transformers.PreTrainedModel,
    more: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> None:
    """Write a model as float32.

    Args:
        path: of the file.
        architecture: as llama.cpp calls it.
        model: what to write.
        more: adds what a test wants to see in the file besides.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _sizes(writer, model.config)
    _rotary(writer, architecture, model.config)
    _family(writer, architecture, model.config)
    more(writer)
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if architecture in PERMUTED and ".q_proj." in name:
            values = _by_pairs(values, model.config.num_attention_heads)
        if architecture in PERMUTED and ".k_proj." in name:
            values = _by_pairs(values, model.config.num_key_value_heads)
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        writer.add_tensor(written, values.numpy())
    for written, factors in _factors(model.config).items():
        writer.add_tensor(written, factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _by_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order 0, n/2, 1, n/2 + 1, … of its n rows."""
    size = len(rows) // heads
    order = torch.arange(size).view(2, size // 2).T.reshape(-1)
    return rows.view(heads, size, -1)[:, order].reshape(rows.shape).contiguous()


def _sizes(writer: gguf.GGUFWriter, found: Any) -> None:
    writer.add_block_count(found.num_hidden_layers)
    writer.add_context_length(found.max_position_embeddings)
    writer.add_embedding_length(found.hidden_size)
    writer.add_feed_forward_length(found.intermediate_size)
    writer.add_head_count(found.num_attention_heads)
    writer.add_head_count_kv(found.num_key_value_heads)
    writer.add_layer_norm_rms_eps(found.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _rotary(writer: gguf.GGUFWriter, architecture: str, found: Any) -> None:
    rope = found.rope_parameters
    head_dim = getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads
    main = rope.get("full_attention", rope)
    if architecture == "phi3":
        original = main.get("original_max_position_embeddings", found.max_position_embeddings)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_dimension_count(int(main.get("partial_rotary_factor", 1.0) * head_dim))
        writer.add_rope_freq_base(main["rope_theta"])
        return
    if architecture != "granite":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture in PERMUTED:
        writer.add_vocab_size(found.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if architecture in ("gemma", "gemma2"):
        return  # these leave the base unsaid
    writer.add_rope_freq_base(main["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if main["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(main["rope_type"]))
        writer.add_rope_scaling_factor(main["factor"])
    if main["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(main["original_max_position_embeddings"])


def _family(writer: gguf.GGUFWriter, architecture: str, found: Any) -> None:
    match architecture:
        case "granite":
            writer.add_attention_scale(found.attention_multiplier)
            writer.add_embedding_scale(found.embedding_multiplier)
            writer.add_residual_scale(found.residual_multiplier)
            writer.add_logit_scale(found.logits_scaling)
        case "phi3":
            writer.add_sliding_window(found.sliding_window or 0)
            if found.rope_parameters["rope_type"] == "longrope":
                original = found.rope_parameters["original_max_position_embeddings"]
                ratio = found.max_position_embeddings / original
                factor = math.sqrt(1 + math.log(ratio) / math.log(original))
                writer.add_rope_scaling_attn_factors(factor)
        case "gemma2":
            writer.add_sliding_window(found.sliding_window)
            writer.add_attn_logit_softcapping(found.attn_logit_softcapping)
            writer.add_final_logit_softcapping(found.final_logit_softcapping)
        case "gemma3":
            writer.add_sliding_window(found.sliding_window)


def _factors(found: Any) -> dict[str, NDArray[np.float32]]:
    rope = found.rope_parameters
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    frequencies = rope["rope_theta"] ** (-np.arange(0, found.head_dim, 2) / found.head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return {"rope_freqs.weight": factors.astype(np.float32)}

"""What a GGUF file says in its metadata, as the settings of a Hugging Face configuration.

llama.cpp's `convert_hf_to_gguf.py` writes these files, and its `src/models/*.cpp` say what a file
leaves unsaid. A family stands here with a test that writes such a file and compares tokens.

Rule: every key of the architecture is either understood or refused by name. Nothing that could
change what the model computes is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

from edgeshard.errors import InputError

Metadata = Mapping[str, Any]
Settings = dict[str, Any]
Factors = Mapping[str, list[float]]

# Tensors that are part of the configuration: what rotary frequencies are divided by.
FREQUENCIES, LONG, SHORT = (
    f"rope_{name}.weight" for name in ("freqs", "factors_long", "factors_short")
)
_PLAIN = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}
_REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length")
_ROPE = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_SEPARATE = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_PACKED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_NORMS = tuple(
    f"{place}_layernorm"
    for place in ("input", "post_attention", "pre_feedforward", "post_feedforward")
)


@dataclass(frozen=True)
class GgufFamily:
    """How files of one architecture differ from Hugging Face's.

    Attributes:
        model_type: of the configuration.
        permuted: rows of queries and keys interleave rotary pairs, head by head.
        norms_from_one: the file has 1 + weight where the model's norms count from one.
        packed: queries, keys and values are one matrix; so are gate and up.
        keys: further metadata, and the settings that they are.
        more: settings that follow from others.
    """

    model_type: str
    permuted: bool = False
    norms_from_one: bool = False
    packed: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Settings], Settings] = lambda _: {}


def _query_scale(layers_27b: int) -> Callable[[Settings], Settings]:
    """Gemma's scale of queries: the file leaves it unsaid, and the 27B models have another."""

    def more(found: Settings) -> Settings:
        large = found["num_hidden_layers"] == layers_27b
        by_width = found["hidden_size"] // found["num_attention_heads"]
        return {"query_pre_attn_scalar": by_width if large else found["head_dim"]}

    return more


def _gemma3(found: Settings) -> Settings:
    """Blocks with a window turn by a table of their own, which no scaling touches."""
    local = {"rope_type": "default", "rope_theta": found.pop("local_rope_theta", 10_000.0)}
    tables = {"full_attention": found["rope_parameters"], "sliding_attention": local}
    return _query_scale(62)(found) | {"rope_parameters": tables}


def _phi3(found: Settings) -> Settings:
    """A window of 0 stands for none."""
    return {"sliding_window": found.get("sliding_window") or None}


_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("llama", permuted=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "smollm3": GgufFamily("smollm3", permuted=True),
    "arcee": GgufFamily("arcee", permuted=True),
    "olmo2": GgufFamily("olmo2"),
    "granite": GgufFamily("granite", permuted=True, keys=_SCALES),
    "phi3": GgufFamily("phi3", packed=True, keys=_WINDOW, more=_phi3),
    "gemma": GgufFamily("gemma", norms_from_one=True),
    "gemma2": GgufFamily(
        "gemma2", norms_from_one=True, keys=_WINDOW | _CAPS, more=_query_scale(46)
    ),
    "gemma3": GgufFamily(
        "gemma3_text",
        norms_from_one=True,
        keys=_WINDOW
        | {
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "local_rope_theta",
        },
        more=_gemma3,
    ),
}


def tensor_names(architecture: str, num_blocks: int) -> dict[str, str]:
    """Hugging Face names, without `model.` and suffix, by those of the file."""
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    known = gguf.get_tensor_name_map(kind, num_blocks)
    modules = [*_NORMS, *(_PACKED if GGUF_FAMILIES[architecture].packed else _SEPARATE)]
    names = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
    for index in range(num_blocks):
        for module in modules:
            found = known.get_name(f"model.layers.{index}.{module}")
            if found is not None:
                names[found] = f"layers.{index}.{module}"
    return names


def settings(architecture: str, metadata: Metadata, factors: Factors) -> Settings:
    """The configuration's settings that a file's metadata gives.

    Args:
        architecture: one of `GGUF_FAMILIES`.
        metadata: values by their key, without the leading architecture.
        factors: divisors of rotary frequencies, by the name of their tensor.

    Raises:
        InputError: a key is missing, unknown, of another form, or contradicts another.
    """
    family, left = GGUF_FAMILIES[architecture], dict(metadata)
    missing = [key for key in (*_REQUIRED, "attention.head_count") if key not in left]
    if missing:
        raise InputError(f"the GGUF file lacks {architecture}.{missing[0]}; fetch it again")
    found: Settings = {}
    for key, name in {**_PLAIN, **family.keys}.items():
        if key in left:
            found[name] = left.pop(key)
            if not isinstance(found[name], int | float):
                raise InputError(f"{architecture}.{key} is no number for all blocks alike")
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    if any(found[name] < 1 for name in ("num_hidden_layers", "num_attention_heads")):
        raise InputError(f"{architecture} with no blocks or no heads; fetch the file again")
    found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    if left.pop("attention.value_length", found["head_dim"]) != found["head_dim"]:
        raise InputError("values of another size than keys are not supported")
    found["rope_parameters"] = _rope(architecture, left, found, factors)
    found |= family.more(found)
    left.pop("vocab_size", None)  # that is how many rows the embedding has
    if left:
        raise InputError(
            f"GGUF key {architecture}.{min(left)} is not known here, and might change what the "
            "model computes; give the Hugging Face folder"
        )
    return found


def _rope(architecture: str, left: Settings, found: Settings, factors: Factors) -> Settings:
    rope: Settings = {"rope_theta": float(left.pop("rope.freq_base", 10_000.0))}
    turned = int(left.pop("rope.dimension_count", found["head_dim"]))
    if turned != found["head_dim"]:
        if architecture != "phi3":
            raise InputError(
                f"{architecture} with {turned} rotated channels of {found['head_dim']}"
                " is not supported"
            )
        rope["partial_rotary_factor"] = turned / found["head_dim"]
    for name, values in factors.items():
        if len(values) != turned // 2:
            raise InputError(f"{name} has {len(values)} values for {turned // 2} frequencies")
    kind = str(left.pop("rope.scaling.type", "none"))
    if left.pop("rope.scaling.finetuned", True) is False and architecture == "granite":
        raise InputError("granite without positions is not supported")
    scaling = {
        name: left.pop(f"rope.scaling.{key}")
        for key, name in _ROPE.items()
        if f"rope.scaling.{key}" in left
    }
    attention_factor = left.pop("rope.scaling.attn_factor", 1.0)
    if SHORT in factors and LONG in factors and kind in ("none", "longrope"):
        original = scaling.get("original_max_position_embeddings")
        if original is None:
            raise InputError("rotary factors without original_context_length; fetch it again")
        if architecture == "phi3":
            found["original_max_position_embeddings"] = original
        return rope | {
            "rope_type": "longrope",
            "short_factor": factors[SHORT],
            "long_factor": factors[LONG],
            "original_max_position_embeddings": original,
            "attention_factor": attention_factor,
        }
    if FREQUENCIES in factors and kind == "none":
        # Of Llama 3's scaling the file has the result alone, one divisor a frequency.
        return rope | {
            "rope_type": "longrope",
            "short_factor": factors[FREQUENCIES],
            "long_factor": factors[FREQUENCIES],
            "original_max_position_embeddings": found["max_position_embeddings"],
            "attention_factor": 1.0,
        }
    if factors or kind not in ("none", "linear", "yarn"):
        raise InputError(f"RoPE scaling {kind!r} of this GGUF file is not supported")
    return rope | ({"rope_type": "default"} if kind == "none" else {"rope_type": kind, **scaling})

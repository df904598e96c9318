"""Rotary tables are the model's own angles, with cosines and sines that no library decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgeshard.compiler.rotary import rotary_tables
from edgeshard.compiler.semantic import SHARED, Tables

ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": ORIGINAL,
    "llama3": {**ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {**ORIGINAL, "short_factor": [1.5] * 8, "long_factor": [3.0] * 8},
}


def _module(scaling: str) -> tuple[Any, transformers.LlamaConfig]:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": scaling, "rope_theta": 100_000.0, **SCALINGS[scaling]},
    )
    return LlamaRotaryEmbedding(config), config


def _tables(scaling: str) -> Tables:
    module, config = _module(scaling)
    return rotary_tables(module, config)[SHARED]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_table_is_rounded_once(scaling: str) -> None:
    module, _ = _module(scaling)
    found = _tables(scaling)

    positions = np.arange(len(found.cos), dtype=np.float32)[:, None]
    angles = (positions * module.inv_freq.numpy()).astype(np.float64)

    for table, function in ((found.cos, np.cos), (found.sin, np.sin)):
        expected = function(angles).astype(np.float32) * np.float32(module.attention_scaling)
        assert len(table) == (128 if scaling == "longrope" else 512)
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_table_is_what_transformers_computes(scaling: str) -> None:
    module, _ = _module(scaling)
    found = _tables(scaling)

    cos, sin = module(torch.empty(1, 1, 1), torch.arange(len(found.cos))[None])

    np.testing.assert_allclose(found.cos, cos[0, :, :8].numpy(), rtol=0, atol=2e-7)
    np.testing.assert_allclose(found.sin, sin[0, :, :8].numpy(), rtol=0, atol=2e-7)

"""A GGUF file of every listed architecture says what transformers says of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.gguf_families import GGUF_FAMILIES
from edgeshard.errors import InputError
from support.gguf_family import CASES, gguf_file, reference, write_family
from support.tiny_family import NUM_TOKENS
from support.tiny_llama import PROMPTS, CompiledModel

_LONGROPE = gguf.RopeScalingType.LONGROPE
_THREE = np.ones(3, np.float32)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_of_a_gguf_file_equal_transformers(case: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    result = compile_model(gguf_file(case), store, precision="fp32")
    model = CompiledModel(store, result.manifest, result.blob)

    with model.chain(2, context=model.manifest.max_context) as chain:
        for prompt, expected in zip(PROMPTS, reference(case).texts, strict=True):
            assert chain.greedy(prompt, NUM_TOKENS) == expected


@pytest.mark.parametrize("case", CASES)
def test_the_reference_of_a_gguf_file_has_no_near_ties(case: str) -> None:
    assert reference(case).flaw() == ""


def test_no_gguf_architecture_is_listed_without_a_proof() -> None:
    assert {case.architecture for case in CASES.values()} == set(GGUF_FAMILIES)


@pytest.mark.parametrize(
    ("architecture", "case", "more", "message"),
    [
        ("llama", "llama", lambda w: w.add_sliding_window(8), "llama.attention.sliding_window"),
        ("llama", "llama", lambda w: w.add_expert_count(8), "llama.expert_count"),
        ("qwen3", "qwen3", lambda w: w.add_logit_scale(2.0), "qwen3.logit_scale"),
        ("olmo2", "olmo2", lambda w: w.add_rope_dimension_count(8), "8 rotated channels of 16"),
        ("llama", "llama", lambda w: w.add_tensor("rope_freqs.weight", _THREE), "3 values for 8"),
        ("qwen3", "qwen3", lambda w: w.add_rope_scaling_type(_LONGROPE), "'longrope'"),
    ],
)
def test_what_a_gguf_file_says_and_we_do_not_know_is_refused_by_name(
    architecture: str,
    case: str,
    more: Callable[[gguf.GGUFWriter], None],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.gguf"
    write_family(path, architecture, reference(case).model, more)

    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def test_end_tokens_of_text_and_turn_both_end_an_answer(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_eos_token_id(3)
        writer.add_eot_token_id(5)

    path = tmp_path / "model.gguf"
    write_family(path, "qwen3", reference("qwen3").model, more)

    assert open_checkpoint(path).config.eos_token_id == [3, 5]

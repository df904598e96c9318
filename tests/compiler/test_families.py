"""Every family that is listed says what transformers says, in every setting that is listed."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from edgeshard.compiler.families import FAMILIES, listing
from edgeshard.schemas.common import Target
from support.tiny_family import PROOFS, compiled, reference
from support.tiny_llama import PROMPTS, generated

NUM_TOKENS = 64
CUTS = (2, 4)  # embedding, block 0 | blocks 1, 2 | head


@cache
def texts(family: str, proof: str) -> list[list[int]]:
    return [generated(reference(family, proof), prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_greedy_tokens_over_three_shards_equal_transformers(
    family: str, proof: str, target: Target
) -> None:
    model = compiled(family, proof, target, "fp32")
    with model.chain(*CUTS, context=model.manifest.max_context) as chain:
        for prompt, expected in zip(PROMPTS, texts(family, proof), strict=True):
            assert chain.greedy(prompt, NUM_TOKENS) == expected


@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_the_reference_has_no_near_ties_and_is_no_constant(family: str, proof: str) -> None:
    """Else token identity would hang on rounding, or on one token that always wins."""
    model, seen = reference(family, proof), texts(family, proof)
    for prompt, answer in zip(PROMPTS, seen, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        first, second = logits.topk(2).values.unbind(-1)
        assert float(((first - second) / logits.std()).min()) > 5e-4
    assert len({tuple(answer) for answer in seen}) == len(PROMPTS)
    assert all(len(set(answer)) > 4 for answer in seen)


def test_no_family_is_listed_without_a_proof() -> None:
    assert {family for family, _ in PROOFS} == set(FAMILIES)
    assert [line.split()[0] for line in listing().splitlines()] == list(FAMILIES)

"""Every family that is listed says what transformers says, in every setting that is listed."""

from __future__ import annotations

import onnx
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.compiler.families import FAMILIES, listing
from edgeshard.schemas.common import Target
from support.cuda_kernels import without_kernel
from support.tiny_family import NUM_TOKENS, PROOFS, compiled, reference
from support.tiny_llama import PROMPTS

CUTS = (2, 4)  # embedding, block 0 | blocks 1, 2 | head


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_greedy_tokens_over_three_shards_equal_transformers(
    family: str, proof: str, target: Target
) -> None:
    model = compiled(family, proof, target, "fp32")
    with model.chain(*CUTS, context=model.manifest.max_context) as chain:
        for prompt, expected in zip(PROMPTS, reference(family, proof).texts, strict=True):
            assert chain.greedy(prompt, NUM_TOKENS) == expected


@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_in_16_bits_cuda_has_a_kernel_for_every_operator(family: str, proof: str) -> None:
    """By ONNX Runtime's list of them; as `ort` graphs are, but for the type of their floats."""
    model = compiled(family, proof, "ort", "fp32")
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    graph = onnx.load(str(model.store.path(shard.graph)), load_external_data=False)

    assert without_kernel(graph) == {"GroupQueryAttention"}
    for kind in ("float16", "bfloat16"):
        assert without_kernel(graph, {"float": kind}) == set()


@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_the_reference_has_no_near_ties_and_is_no_constant(family: str, proof: str) -> None:
    """Else token identity would hang on rounding, or on one token that always wins."""
    assert reference(family, proof).flaw() == ""


def test_no_family_is_listed_without_a_proof() -> None:
    assert {family for family, _ in PROOFS} == set(FAMILIES)
    assert [line.split()[0] for line in listing().splitlines()] == list(FAMILIES)

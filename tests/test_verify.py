"""What `esc verify` says of a good model, a coarse one, and one that is broken."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.errors import InputError
from edgeshard.schemas.common import Precision, changed
from edgeshard.verify import Verification, check_source, greedy, reference_model, verify_model
from support.tiny_llama import NUM_BLOCKS, PROMPTS, compiled, folder, generated, reference

TEXT = PROMPTS[3]


def _verify(precision: Precision, checkpoint: str = "grouped") -> tuple[Verification, list[str]]:
    model = compiled("grouped", precision)
    seen: list[str] = []
    found = verify_model(
        model.store,
        model.manifest,
        model.blob,
        folder(checkpoint),
        TEXT,
        num_tokens=8,
        threads=1,
        on_unit=seen.append,
    )
    return found, seen


def test_fp32_agrees_with_the_checkpoint() -> None:
    found, seen = _verify("fp32")

    assert found.identical_tokens == found.num_tokens == 8
    assert found.top1_agreement == 1
    assert found.relative < 1e-4
    assert found.mean_kl < 1e-6
    assert all(unit.relative < 1e-4 for unit in found.units)
    names = ["embedding", *(f"block.{index}" for index in range(NUM_BLOCKS)), "head"]
    assert [unit.unit for unit in found.units] == names
    assert seen == [*names, "greedy tokens"]


def test_fewer_bits_show_as_larger_errors_of_every_unit() -> None:
    fp32, int8, int4 = (_verify(precision)[0] for precision in ("fp32", "int8", "int4"))

    for exact, fine, coarse in zip(fp32.units, int8.units, int4.units, strict=True):
        assert exact.relative < fine.relative < coarse.relative < 0.5
    assert fp32.mean_kl < int8.mean_kl < int4.mean_kl
    assert fp32.largest < int8.largest < int4.largest


def test_another_checkpoint_is_refused_with_both_digests() -> None:
    expected = compiled("grouped").manifest.source.digest
    actual = open_checkpoint(folder("multi_head")).digest()

    with pytest.raises(InputError, match=f"{actual}.*{expected}"):
        _verify("fp32", "multi_head")


def test_a_model_that_names_its_checkpoint_by_another_hash_is_to_be_compiled_again() -> None:
    model = compiled("grouped").manifest
    older = changed(model, source=changed(model.source, digest="sha256:" + 64 * "0"))

    with pytest.raises(
        InputError, match=r"by sha256:0+, this version by blake3:.*compile it again"
    ):
        check_source(open_checkpoint(folder("grouped")), older)


def test_the_reference_is_transformers_own_model() -> None:
    rebuilt = reference_model(open_checkpoint(folder("grouped")))

    assert generated(rebuilt, TEXT, 16) == generated(reference("grouped"), TEXT, 16)
    for (name, found), (_, expected) in zip(
        rebuilt.named_parameters(), reference("grouped").named_parameters(), strict=True
    ):
        np.testing.assert_array_equal(found.detach(), expected.detach(), err_msg=name)


def test_greedy_tokens_are_transformers() -> None:
    model = compiled("grouped")

    found = greedy(model.store, model.manifest, model.blob, TEXT, 16, 64, threads=1)

    assert found == generated(reference("grouped"), TEXT, 16)

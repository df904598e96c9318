"""Keys and values in int8: near the same model with floats, over the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType, Target
from support import tiny_family
from support.esc import esc, esc_here
from support.tiny_llama import NUM_BLOCKS, VOCAB, compiled, folder, save_worded, shower

TEXT = [int(token) for token in np.random.default_rng(9).integers(0, VOCAB, 48)]
# Whatever an attention can have that the operator's two forms must agree on.
PROOFS = [
    ("qwen3", "norms of queries and keys"),
    ("smollm3", "blocks without positions"),
    ("phi3", "half of the channels rotated"),
    ("gemma2", "capped scores and logits, windows in turns"),
]

# Weights drawn wide make attention sharp; a forgotten rotation or scale is off by 0.5 and more.
LIMIT = 0.15


@pytest.mark.parametrize(("family", "proof"), PROOFS)
def test_a_prompt_and_an_answer_are_near_those_of_floats(family: str, proof: str) -> None:
    floats = tiny_family.compiled(family, proof, "ort", "fp32")
    codes = tiny_family.compiled(family, proof, "ort", "fp32", int8_cache=True)
    context = floats.manifest.max_context
    with floats.chain(context=context) as expected, codes.chain(context=context) as found:
        wanted, seen = (
            [
                chain.step(0, TEXT[:40], every_position=True)[0],
                *(chain.step(at, TEXT[at : at + 1]) for at in range(40, 48)),
            ]
            for chain in (expected, found)
        )
    for pair in ((wanted[:1], seen[:1]), (wanted[1:], seen[1:])):  # a prompt, and single steps
        floats_said, codes_said = map(np.concatenate, pair)
        error = np.sqrt(np.mean((codes_said - floats_said) ** 2)) / floats_said.std()
        assert 0 < error < LIMIT


def test_only_graphs_and_scales_are_new() -> None:
    floats, codes = (compiled("grouped", int8_cache=kept).manifest for kept in (False, True))

    assert (floats.kv.dtype, codes.kv.dtype) == ("float32", "int8")
    assert floats.kv.bytes_per_token() == 4 * codes.kv.bytes_per_token()
    assert codes.name == f"{floats.name}-kv-int8"
    added = set(codes.blobs()) - set(floats.blobs())
    scales = [blob for blob in added if blob.suffix == ".safetensors"]
    assert len(scales) == NUM_BLOCKS
    assert len(added) == 2 * NUM_BLOCKS
    structures = [{unit.structure for unit in model.units[1:-1]} for model in (floats, codes)]
    assert len(structures[1]) == 1  # a profile measures one block for all
    assert structures[0] != structures[1]


def test_a_chain_may_have_stages_of_both_kinds() -> None:
    """Of one with little memory the keys and values may be codes, and floats elsewhere."""
    models = [compiled("grouped", int8_cache=kept) for kept in (True, False)]
    with models[1].chain() as floats, models[1].chain(2, models=models) as both:
        expected, found = (chain.step(0, TEXT) for chain in (floats, both))

    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert 0 < error < LIMIT


def test_two_compiles_give_the_same_digest(tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        store = Store(tmp_path / name)
        made.append(compile_model(folder("grouped"), store, show_cache=shower(store)).blob)

    assert made[0] == made[1] == compiled("grouped", int8_cache=True).blob


@pytest.mark.parametrize(
    ("target", "variants", "activations", "said"),
    [
        ("portable", (), None, "not for portable with float32"),
        ("ort", ("portable",), None, "not for ort and portable with float32"),
        ("ort", (), "float16", "not for ort with float16"),
    ],
)
def test_what_has_no_int8_is_refused_by_name(
    target: Target,
    variants: tuple[Target, ...],
    activations: FloatType | None,
    said: str,
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    with pytest.raises(InputError, match=f"keys and values in int8 are for the ort.*{said}"):
        compile_model(
            folder("grouped"),
            store,
            target=target,
            variants=variants,
            activations=activations,
            show_cache=shower(store),
        )
    assert store.models() == []


def test_the_command_sees_them_on_a_text(tmp_path: Path) -> None:
    checkpoint = save_worded(tmp_path / "model")
    text = tmp_path / "text"
    text.write_text("".join(chr(40 + i % 80) for i in range(600)))
    command = ("compile", str(checkpoint), "--out", str(tmp_path / "store"), "--kv", "int8")

    given = esc_here(*command, "--calibrate", str(text), "--name", "given", folder=tmp_path)
    again = esc(*command, "--calibrate", str(text), "--name", "given")  # another process
    own = esc_here(*command, "--name", "own", folder=tmp_path)

    assert (given.code, again.code, own.code) == (0, 0, 0), given.err + own.err
    store = Store(tmp_path / "store")
    models = [store.model(name)[0] for name in ("given", "own")]
    assert [model.kv.dtype for model in models] == ["int8", "int8"]
    assert models[0].units != models[1].units  # of other texts, other scales
    assert again.out == given.out.replace("units, ", "units (5 made before), ")


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    command = ("compile", folder("grouped"), "--out", "store")
    unknown = esc_here(*command, "--kv", "int4", folder=tmp_path)
    wordless = esc_here(*command, "--kv", "int8", folder=tmp_path)

    assert unknown.complaint == "esc: unknown kv 'int4'; known: int8"
    assert "has no tokenizer" in wordless.complaint
    assert unknown.code
    assert wordless.code
    assert Store(tmp_path / "store").models() == []

"""Stored blocks come through bit for bit; what we quantise ourselves stays within half a step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.encoding import (
    FLOAT,
    STORED,
    Array,
    Encoding,
    block_encoding,
    decode,
    import_gguf,
    quantise,
)
from edgeshard.compiler.scale_search import MAX_SCALE, SYMMETRIC_REACH, WIDTHS, find_scales
from edgeshard.local_run import default_checkpoint
from edgeshard.schemas.common import Target
from support import encoded
from support.gguf_file import HEADS, KV_HEADS, MIXED, NUM_BLOCKS, GgufFile, shapes, write_gguf
from support.tiny_llama import CompiledModel

KINDS: type[gguf.GGMLQuantizationType] = gguf.GGMLQuantizationType
CASES = settings(derandomize=True, deadline=None, max_examples=60)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))


def _values(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    """Rows of very different size, one of them zero."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, columns), np.float32)
    values *= np.float32(10.0) ** generator.integers(-3, 3, (rows, 1)).astype(np.float32)
    values[0] = 0
    return np.asarray(values, np.float32)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
@CASES
@given(sizes)
def test_imported_blocks_are_bit_equal(name: str, size: tuple[int, int, int]) -> None:
    rows, blocks, seed = size
    raw = gguf.quantize(_values(rows, 32 * blocks, seed), KINDS[name])

    found = decode(import_gguf(raw, name), STORED[name])

    np.testing.assert_array_equal(found, gguf.dequantize(raw, KINDS[name]))


@CASES
@given(sizes)
def test_imported_q4_1_is_equal_to_fp32_rounding(size: tuple[int, int, int]) -> None:
    rows, blocks, seed = size
    raw = gguf.quantize(_values(rows, 32 * blocks, seed), KINDS.Q4_1)
    expected = gguf.dequantize(raw, KINDS.Q4_1)

    found = decode(import_gguf(raw, "Q4_1"), STORED["Q4_1"])

    # The parts are as large as 8 scales, which is less than the span of a block.
    span = np.repeat(np.abs(expected).reshape(rows, blocks, 32).max(-1), 32, axis=1)
    assert (np.abs(found - expected) <= 4 * np.finfo(np.float32).eps * span).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_arbitrary_codes_come_through(name: str) -> None:
    """Every nibble and byte, not only those that a quantiser would write."""
    generator = np.random.default_rng(3)
    header = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}[name]
    body = generator.integers(0, 256, (4, 3, 32 * STORED[name].bits // 8), np.uint8)
    constants = generator.standard_normal((4, 3, header)).astype(np.float16).view(np.uint8)
    raw = np.concatenate((constants, body), axis=2).reshape(4, -1)

    found = decode(import_gguf(raw, name), STORED[name])

    expected = gguf.dequantize(raw, KINDS[name])
    tolerance = 1e-5 if name == "Q4_1" else 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert np.unique(found).size > 100


OWN = [
    *(Encoding("step_blocks", bits, block) for bits in (4, 6, 8) for block in (16, 32, 64)),
    *(Encoding("zero_blocks", 4, block) for block in (16, 32, 64)),
]


def _label(encoding: Encoding) -> str:
    return f"{encoding.kind}-{encoding.bits}-{encoding.block}"


def _loss(values: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.square(values - found, dtype=np.float64).sum())


def _largest_value_rule(values: NDArray[np.float32], bits: int, block: int) -> NDArray[np.float32]:
    """Each block scaled by its value of largest magnitude, as llama.cpp's Q4_0 is."""
    blocks = values.reshape(len(values), -1, block)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scale = peak / -(2 ** (bits - 1))
    codes = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    codes = np.clip(np.rint(codes), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.asarray((codes * scale).reshape(values.shape), np.float32)


@pytest.mark.parametrize("encoding", OWN, ids=_label)
@CASES
@given(sizes)
def test_a_value_is_off_by_half_a_step_or_clipped(
    encoding: Encoding, size: tuple[int, int, int]
) -> None:
    rows, blocks, seed = size
    values = _values(rows, encoding.block * blocks, seed)

    parts = quantise(values, encoding)
    found = decode(parts, encoding)

    scales = parts["scales"].astype(np.float32) * parts["steps"].astype(np.float32)
    one = 2 ** (encoding.read_bits - encoding.bits)  # of the codes that are read
    step = np.repeat(one * np.abs(scales), encoding.block, axis=1)
    error = np.abs(found - values)
    inside = np.abs(values) < np.abs(found)  # a clipped value is beyond the end of the grid
    assert (error[inside] <= 0.501 * step[inside]).all()
    assert (found[0] == 0).all()
    assert (np.abs(parts["scales"].astype(np.int16)) <= 127).all()


@pytest.mark.parametrize(
    ("bits", "block", "with_zeros", "share"),
    [(4, 32, False, 0.92), (4, 32, True, 0.83), (4, 64, False, 0.92), (8, 64, False, 1.0)],
)
def test_less_is_lost_than_by_the_largest_value_alone(
    bits: int, block: int, with_zeros: bool, share: float
) -> None:
    values = np.random.default_rng(1).standard_normal((64, 576), np.float32)
    encoding = Encoding("zero_blocks" if with_zeros else "step_blocks", bits, block)

    found = decode(quantise(values, encoding), encoding)

    plain = _loss(values, _largest_value_rule(values, bits, block))
    assert _loss(values, found) < share * plain


def test_zero_points_serve_blocks_that_lie_on_one_side() -> None:
    values = 1 + np.random.default_rng(2).random((4, 128), np.float32)
    kinds = (Encoding("step_blocks", 4, 32), Encoding("zero_blocks", 4, 32))

    losses = [_loss(values, decode(quantise(values, e), e)) for e in kinds]

    assert losses[1] < 0.4 * losses[0]


@pytest.mark.parametrize("encoding", OWN, ids=_label)
def test_a_scale_is_rounded_to_a_step_that_loses_little(encoding: Encoding) -> None:
    """To the better of both neighbours; at 4 bits to the nearest, which is hardly worse."""
    values = np.random.default_rng(5).standard_normal((48, 256), np.float32)
    blocks = values.reshape(-1, encoding.block)
    has_zeros, top = encoding.kind == "zero_blocks", 2.0**encoding.bits - 1
    wanted, zeros = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.uint8)
    grids = WIDTHS if has_zeros else SYMMETRIC_REACH[encoding.bits]
    find_scales(values.reshape(-1), None, encoding.block, top, grids, has_zeros, wanted, zeros)

    parts = quantise(values, encoding)

    one = 2.0 ** (encoding.read_bits - encoding.bits)  # of the codes that are read
    steps = np.repeat(one * parts["steps"].astype(np.float32), 256 // encoding.block)
    zero = zeros[:, None].astype(np.float32)
    losses = []
    for scale in (parts["scales"].ravel(), np.floor(wanted / steps), np.ceil(wanted / steps)):
        width = (np.clip(scale, -MAX_SCALE, MAX_SCALE) * steps)[:, None]
        codes = np.clip(np.rint(blocks / width), -zero, top - zero)
        losses.append(np.square(blocks - codes * width, dtype=np.float64).sum(axis=1))
    best = np.minimum(losses[1], losses[2])
    if encoding.bits > 4:
        assert (losses[0] <= best * 1.001).all()
    else:
        assert losses[0].sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("encoding", OWN, ids=_label)
def test_blocks_beside_an_outlier_keep_a_scale(encoding: Encoding) -> None:
    """Their scales are a fraction of a step; without any, all their values would be lost."""
    values = np.random.default_rng(6).standard_normal((4, 256), np.float32)
    values[:, 0] = 400

    found = decode(quantise(values, encoding), encoding)

    others = slice(encoding.block, None)
    lost = _loss(values[:, others], found[:, others])
    assert lost < 0.3 * np.square(values[:, others], dtype=np.float64).sum()


@pytest.mark.parametrize("encoding", OWN, ids=_label)
def test_what_counts_more_is_hit_better(encoding: Encoding) -> None:
    values = np.random.default_rng(3).standard_normal((32, 128), np.float32)
    importance = np.where(np.arange(128) % 4 == 0, 100, 1).astype(np.float32)

    plain, weighted = (
        np.square(decode(quantise(values, encoding, counts), encoding) - values)
        for counts in (None, importance)
    )

    assert (weighted * importance).sum() < (plain * importance).sum()


@pytest.mark.parametrize("encoding", OWN, ids=_label)
def test_rows_do_not_depend_on_their_neighbours(encoding: Encoding) -> None:
    """They come in pieces, whose size is nobody's business."""
    values = np.random.default_rng(4).standard_normal((7, 256), np.float32)

    whole = quantise(values, encoding)
    pieces = [quantise(values[at], encoding) for at in (slice(0, 2), slice(2, 7))]

    for name, part in whole.items():
        np.testing.assert_array_equal(part, np.concatenate([piece[name] for piece in pieces]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other processor is an x86-64")
def test_a_processor_without_wide_vectors_makes_the_same_bytes() -> None:
    plain = {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
    }
    there = subprocess.run(
        [sys.executable, "-c", "from support import encoded; print(encoded.digest())"],
        env={**os.environ, **plain, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert there.strip() == encoded.digest()


@pytest.mark.parametrize("encoding", OWN, ids=_label)
def test_the_smallest_and_largest_values_do_no_harm(encoding: Encoding) -> None:
    tiny, huge = np.float32(1e-42), np.finfo(np.float32).max
    values = np.full((2, 128), tiny, np.float32)
    values[1, ::3] = huge / 4

    found = decode(quantise(values, encoding), encoding)

    assert np.isfinite(found).all()
    assert (np.abs(found[0]) <= 2 * tiny).all()
    np.testing.assert_allclose(found[1, ::3], huge / 4, rtol=0.1)


@pytest.mark.parametrize(
    "encoding",
    [*STORED.values(), *(block_encoding(bits, 128) for bits in (4, 6, 8)), FLOAT],
)
@pytest.mark.parametrize("columns", [128, 192])
def test_parts_are_what_the_layout_says(encoding: Encoding, columns: int) -> None:
    values = _values(3, columns, 1)
    name = next((key for key, value in STORED.items() if value == encoding), None)
    parts = (
        import_gguf(gguf.quantize(values, KINDS[name]), name)
        if name
        else quantise(values, encoding)
    )

    found = {key: (part.dtype.type, part.shape) for key, part in parts.items()}

    assert found == encoding.parts(3, columns)


@pytest.mark.parametrize(
    ("bits", "columns", "block"),
    [
        (8, 576, 64),
        (6, 576, 64),
        (4, 576, 64),
        (4, 96, 32),
        (8, 96, 32),
        (4, 48, 16),
        (4, 40, 1),
        (8, 8, 1),
    ],
)
def test_the_block_fits_the_row(bits: int, columns: int, block: int) -> None:
    assert block_encoding(bits, columns).block == block


def test_fine_blocks_are_smaller_at_4_bits_only() -> None:
    assert [block_encoding(bits, 576, fine=True).block for bits in (4, 8)] == [32, 64]


def test_stored_bits_count_all_parts() -> None:
    assert block_encoding(4, 96).stored_bits(96) == 4 + (3 * 8 + 2 * 8 + 32) / 96
    assert block_encoding(4, 512).stored_bits(512) == 4 + 12 / 64 + 32 / 512
    assert block_encoding(4, 576).stored_bits(576) == 4 + (9 * 8 + 5 * 8 + 32) / 576
    assert block_encoding(6, 576).stored_bits(576) == 6 + (9 * 8 + 32) / 576
    assert STORED["Q4_1"].stored_bits(576) == 6
    assert FLOAT.stored_bits(576) == 32


# Whole files


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def _read_back(model: CompiledModel, unit: int, names: str) -> NDArray[np.float32]:
    """A tensor as standard tools read it from the unit's blobs, decoded."""
    parts: dict[str, Array] = {}
    for blob in model.manifest.units[unit].weights:
        with safe_open(model.store.path(blob), "numpy") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                if name == names:
                    return np.asarray(file.get_tensor(name), np.float32)
                if name.rsplit(".", 1)[0] == names:
                    parts[name.rsplit(".", 1)[1]] = file.get_tensor(name)
    if "weight" in parts:
        return decode(parts, FLOAT)
    bits = 8 if parts["codes"].shape[1] == 32 * parts["scales"].shape[1] else 4
    kind = "offset_blocks" if "offsets" in parts else "blocks"
    return decode(parts, Encoding(kind, bits, 32))  # type: ignore[arg-type]  # one of two literals


def _in_order(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys as Hugging Face has them: llama.cpp interleaves rotary pairs."""
    size = rows.shape[0] // heads
    order = [
        head * size + i for head in range(heads) for i in (*range(0, size, 2), *range(1, size, 2))
    ]
    return rows[order]


def _assert_equal(found: NDArray[np.float32], expected: NDArray[np.float32], kind: str) -> None:
    if kind == "Q4_1":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(found, expected)


PRODUCTS = {"self_attn.o_proj.weight": "attn_output", "mlp.down_proj.weight": "ffn_down"}
GATES = "mlp.gate_proj.weight+mlp.up_proj.weight"  # of one encoding, so one product
NORMS = {"input_layernorm.weight": "attn_norm", "post_attention_layernorm.weight": "ffn_norm"}


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_every_tensor_of_a_gguf_lies_in_the_artifact_as_stored(
    tiny_gguf: GgufFile, tmp_path: Path, target: Target
) -> None:
    compiled = compile_model(tiny_gguf.path, Store(tmp_path), target=target)
    model = CompiledModel(Store(tmp_path), compiled.manifest, compiled.blob)
    assert compiled.manifest.precision == "stored"
    seen = {"token_embd.weight", "output_norm.weight"}

    _assert_equal(
        _read_back(model, 0, "embed_tokens.weight"), tiny_gguf.floats["token_embd.weight"], ""
    )
    _assert_equal(
        _read_back(model, NUM_BLOCKS + 1, "norm.weight"), tiny_gguf.floats["output_norm.weight"], ""
    )
    for index in range(NUM_BLOCKS):
        for ours, theirs in (PRODUCTS | NORMS).items():
            name = f"blk.{index}.{theirs}.weight"
            kind = MIXED[name].name if name in MIXED else ""
            _assert_equal(_read_back(model, index + 1, ours), tiny_gguf.floats[name], kind)
            seen.add(name)
        gates = [f"blk.{index}.ffn_{part}.weight" for part in ("gate", "up")]
        _assert_equal(
            _read_back(model, index + 1, GATES),
            np.concatenate([tiny_gguf.floats[name] for name in gates]),
            "",
        )
        seen.update(gates)
        q, k, v = (f"blk.{index}.attn_{part}.weight" for part in "qkv")
        expected = [
            _in_order(tiny_gguf.floats[q], HEADS),
            _in_order(tiny_gguf.floats[k], KV_HEADS),
            tiny_gguf.floats[v],
        ]
        names = [f"self_attn.{part}_proj.weight" for part in "qkv"]
        runs = [slice(0, 2), slice(2, 3)] if index == 0 else [slice(0, 3)]  # of one encoding
        for run in runs:
            found = _read_back(model, index + 1, "+".join(names[run]))
            kind = "Q4_1" if index == 0 and run.start == 0 else ""
            _assert_equal(found, np.concatenate(expected[run]), kind)
        seen |= {q, k, v}
    assert seen == set(shapes())


def test_the_real_gguf_lies_in_the_artifact_as_stored(tmp_path: Path) -> None:
    """SmolLM2's own Q4_1 and Q8_0 tensors, every matrix of them."""
    path = default_checkpoint()
    compiled = compile_model(path, Store(tmp_path))
    model = CompiledModel(Store(tmp_path), compiled.manifest, compiled.blob)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def expected(name: str) -> NDArray[np.float32]:
        tensor = tensors[name]
        return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)

    embedding = tensors["token_embd.weight"].tensor_type.name
    _assert_equal(
        _read_back(model, 0, "embed_tokens.weight"), expected("token_embd.weight"), embedding
    )
    for index in range(compiled.manifest.num_blocks):
        for ours, theirs in PRODUCTS.items():
            name = f"blk.{index}.{theirs}.weight"
            kind = tensors[name].tensor_type.name
            _assert_equal(_read_back(model, index + 1, ours), expected(name), kind)
        gates = [f"blk.{index}.ffn_{part}.weight" for part in ("gate", "up")]
        assert tensors[gates[0]].tensor_type == tensors[gates[1]].tensor_type
        kind = tensors[gates[0]].tensor_type.name
        both = np.concatenate([expected(name) for name in gates])
        _assert_equal(_read_back(model, index + 1, GATES), both, kind)
        parts = [expected(f"blk.{index}.attn_{part}.weight") for part in "qkv"]
        joined = [_in_order(parts[0], 9), _in_order(parts[1], 3), parts[2]]
        found = _read_back(
            model, index + 1, "+".join(f"self_attn.{part}_proj.weight" for part in "qkv")
        )
        kind = tensors[f"blk.{index}.attn_q.weight"].tensor_type.name
        _assert_equal(found, np.concatenate(joined), kind)

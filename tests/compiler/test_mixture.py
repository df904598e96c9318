"""`mixed` stays within its bits and spends them where they gain most."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgeshard.artifacts.store import Store
from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.compilation import LOWERINGS
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.encoding import (
    FLOAT,
    STORED,
    Encoding,
    block_encoding,
    decode,
    quantise,
)
from edgeshard.compiler.finished import Compiled
from edgeshard.compiler.graph import Extent, GraphBuilder
from edgeshard.compiler.lowering import Shape
from edgeshard.compiler.mixture import DEFAULT_BITS, choose, fill, mix, spread
from edgeshard.errors import InputError
from edgeshard.quality import weight_sizes
from edgeshard.schemas.common import Precision, Target
from support.tiny_llama import CompiledModel, compiled, folder

CASES = settings(derandomize=True, deadline=None, max_examples=50)
VALUE = "layers.1.self_attn.v_proj.weight"
names = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0, 9), st.floats(0.1, 9))
)


@CASES
@given(names, st.floats(0, 20))
def test_the_budget_is_kept_and_nothing_better_is_left_out(
    offers: dict[str, tuple[float, float]], budget: float
) -> None:
    gains = {name: gain for name, (gain, _) in offers.items()}
    prices = {name: price for name, (_, price) in offers.items()}

    chosen = choose(gains, prices, budget)

    spent = sum(prices[name] for name in chosen)
    assert spent <= budget + 1e-9
    for name in offers.keys() - chosen:
        better = [n for n in chosen if gains[n] / prices[n] >= gains[name] / prices[name]]
        assert sum(prices[n] for n in better) + prices[name] > budget - 1e-9


def test_what_is_free_is_not_chosen() -> None:
    assert choose({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 2.0}, 3.0) == {"b"}


def _compiled(tmp_path: Path, bits: float, calibration: Calibration | None = None) -> Compiled:
    return compile_model(
        folder("grouped"),
        Store(tmp_path),
        precision="mixed",
        bits=bits,
        calibration=calibration,
    )


@pytest.mark.parametrize("bits", [6.0, 7.0, 8.0])
def test_a_model_takes_the_bits_that_were_asked_for(tmp_path: Path, bits: float) -> None:
    found = _compiled(tmp_path, bits)

    sizes = weight_sizes(Store(tmp_path), found.manifest.units)
    real = 8 * sum(size for size, _ in sizes) / sum(count for _, count in sizes)
    assert bits - 0.4 < real <= bits
    assert found.manifest.name.endswith(f"-mixed-{bits:g}")


def test_kinds_that_cost_more_come_first_without_a_text() -> None:
    checkpoint = open_checkpoint(folder("grouped"))
    matrices = [n for n in sorted(checkpoint.names()) if len(checkpoint.shape(n)) == 2]

    for budget, expected in ((5.9, (6, 6, 4, 4)), (6.6, (8, 6, 6, 4))):
        found = mix(checkpoint, matrices, budget, Calibration())
        bits = {name.split(".")[-2]: found[name].bits for name in matrices}
        kinds = ("v_proj", "embed_tokens", "gate_proj", "q_proj")
        assert tuple(bits[kind] for kind in kinds) == expected


def _matrices(variant: str) -> tuple[Checkpoint, dict[str, Encoding]]:
    """A checkpoint, and its matrices in 4 bits with zero points."""
    checkpoint = open_checkpoint(folder(variant))
    shapes = {n: checkpoint.shape(n) for n in checkpoint.names()}
    return checkpoint, {n: block_encoding(4, s[1]) for n, s in shapes.items() if len(s) == 2}


def _taken(checkpoint: Checkpoint, matrices: dict[str, Encoding]) -> float:
    """Bits of a parameter, with vectors in float32."""
    shapes = {n: checkpoint.shape(n) for n in checkpoint.names()}
    vectors = 32 * sum(shape[0] for n, shape in shapes.items() if n not in matrices)
    bits = vectors + sum(
        e.stored_bits(shapes[n][1]) * shapes[n][0] * shapes[n][1] for n, e in matrices.items()
    )
    return bits / sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize(("bits", "is_any"), [(4.5, False), (6.0, True)])
def test_only_what_is_left_of_the_bits_is_spent(bits: float, is_any: bool) -> None:
    checkpoint, low = _matrices("grouped")

    found = fill(checkpoint, low, bits, Calibration())

    assert any(encoding.bits == 8 for encoding in found.values()) == is_any
    assert _taken(checkpoint, found) <= bits or not is_any


def test_floats_and_blocks_of_the_file_stay_as_they_are() -> None:
    checkpoint = open_checkpoint(folder("grouped"))
    low = {VALUE: FLOAT, VALUE.replace("1", "0"): STORED["Q4_0"]}

    assert fill(checkpoint, low, 32.0, Calibration()) == low


def test_a_text_may_say_otherwise() -> None:
    checkpoint = open_checkpoint(folder("grouped"))
    matrices = [n for n in sorted(checkpoint.names()) if len(checkpoint.shape(n)) == 2]
    gains = {name: float(name.endswith("down_proj.weight")) for name in matrices}

    found = mix(checkpoint, matrices, 5.9, Calibration(gains=gains))

    assert {found[n].bits for n in matrices if n.endswith("down_proj.weight")} == {8}


def test_two_compiles_agree_and_a_calibration_changes_bytes(tmp_path: Path) -> None:
    counts = np.where(np.arange(64) % 2, 8, 0.5).astype(np.float32)
    moved = np.triu(np.full((64, 64), 0.5, np.float32))
    said = {
        "c": Calibration(importance={VALUE: counts}),
        "d": Calibration(importance={VALUE: counts}, moved={VALUE: moved}),
    }
    one, again, other, fed_back = (
        _compiled(tmp_path / name, 6.0, said.get(name, Calibration())) for name in "abcd"
    )
    in_the_same_store = _compiled(tmp_path / "c", 6.0)

    assert one.blob == again.blob == in_the_same_store.blob
    assert len({one.blob, other.blob, fed_back.blob}) == 3
    assert _compiled(tmp_path / "c", 6.0, said["d"]).blob == fed_back.blob


@pytest.mark.parametrize("precision", ["int4", "mixed"])
@pytest.mark.parametrize(("bits", "limit"), [(4.0, "all in 4 bits takes"), (10.0, "all in 8")])
def test_bits_out_of_reach_are_refused_with_limits_that_are_within(
    tmp_path: Path, precision: Precision, bits: float, limit: str
) -> None:
    with pytest.raises(InputError, match=f"--bits {bits:g} is out of reach.*{limit}") as refused:
        compile_model(folder("grouped"), Store(tmp_path), precision=precision, bits=bits)

    within = re.findall(r"(?:takes|all in 8) (\d+\.\d+)", str(refused.value))
    assert len(within) == 2
    for said in within:
        compile_model(folder("grouped"), Store(tmp_path), precision=precision, bits=float(said))


def _least(checkpoint: Checkpoint, low: dict[str, Encoding]) -> float:
    """Fewest bits that `int4` may be asked for."""
    with pytest.raises(InputError) as refused:
        fill(checkpoint, low, 4.0, Calibration(), is_asked=True)
    found = re.search(r"all in 4 bits takes (\d+\.\d+)", str(refused.value))
    assert found is not None
    return float(found[1])


def test_below_what_zero_points_take_no_matrix_has_them() -> None:
    checkpoint, low = _matrices("nine_heads")
    least = _least(checkpoint, low)
    enough = _taken(checkpoint, low) + 1e-9

    fewest, almost, all_of_them = (
        fill(checkpoint, low, bits, Calibration(), is_asked=True)
        for bits in (least, enough - 0.001, enough)
    )

    assert least < enough - 0.01
    assert {(e.kind, e.bits) for e in fewest.values()} == {("step_blocks", 4)}
    assert {e.kind for e in almost.values()} == {"step_blocks"}
    assert all_of_them == low


def test_without_being_asked_int4_keeps_its_zero_points() -> None:
    checkpoint, low = _matrices("nine_heads")

    assert fill(checkpoint, low, 4.0, Calibration()) == low


@pytest.mark.parametrize("variant", ["grouped", "nine_heads"])
def test_int4_in_the_fewest_bits_answers_alike_on_both_targets(
    variant: str, tmp_path: Path
) -> None:
    """The `ort` kernels round activations to 8 bits, the portable ones do not."""
    store, least = Store(tmp_path), _least(*_matrices(variant))
    tokens = np.random.default_rng(0).integers(3, 100, 48).tolist()
    targets: tuple[Target, ...] = ("ort", "portable")
    found = [
        compile_model(folder(variant), store, precision="int4", bits=least, target=target)
        for target in targets
    ]

    fp32, int4, fast, plain = (
        model.chain(2).step(0, tokens, every_position=True)
        for model in (
            compiled(variant),
            compiled(variant, "int4"),
            *(CompiledModel(store, made.manifest, made.blob) for made in found),
        )
    )

    assert _bits(tmp_path, found[0]) <= least
    lost = np.square(plain - fp32).mean()
    assert np.square(fast - plain).mean() < 0.1 * lost
    assert lost < 3 * np.square(int4 - fp32).mean()


def test_bits_that_nothing_chooses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--bits 5 is for --precision int4 or mixed, not int8"):
        compile_model(folder("grouped"), Store(tmp_path), precision="int8", bits=5.0)


def test_int4_keeps_to_the_bits_that_are_asked_for(tmp_path: Path) -> None:
    few, more = (
        compile_model(folder("grouped"), Store(tmp_path), precision="int4", bits=bits)
        for bits in (5.3, 6.5)
    )

    assert _bits(tmp_path, few) <= 5.3
    assert 5.3 < _bits(tmp_path, more) <= 6.5


def _bits(store: Path, found: Compiled) -> float:
    sizes = weight_sizes(Store(store), found.manifest.units)
    return 8 * sum(size for size, _ in sizes) / sum(count for _, count in sizes)


def test_without_bits_mixed_takes_its_own(tmp_path: Path) -> None:
    found = compile_model(folder("grouped"), Store(tmp_path), precision="mixed")

    assert DEFAULT_BITS - 0.4 < _bits(tmp_path, found) <= DEFAULT_BITS
    assert found.manifest.name.endswith("-mixed")


@CASES
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.tuples(*(st.floats(0, 9) for _ in range(3)), st.floats(0.1, 9), st.floats(0.1, 9)),
        max_size=6,
    ),
    st.floats(0, 30),
)
def test_no_rise_that_fits_is_left_out(offers: dict[str, tuple[float, ...]], budget: float) -> None:
    costs = {name: offer[:3] for name, offer in offers.items()}
    sizes = {name: (1.0, 1 + offer[3], 1 + offer[3] + offer[4]) for name, offer in offers.items()}

    levels = spread(costs, sizes, budget)

    spent = sum(sizes[name][level] - 1 for name, level in levels.items())
    assert spent <= budget + 1e-9
    for name, now in levels.items():
        for level in range(now + 1, 3):
            if costs[name][level] < costs[name][now]:
                assert spent + sizes[name][level] - sizes[name][now] > budget - 1e-9


def test_what_saves_most_for_its_size_rises_first() -> None:
    costs = {"a": (9.0, 1.0, 0.0), "b": (4.0, 2.0, 0.0)}
    sizes = {"a": (4.0, 6.0, 8.0), "b": (4.0, 6.0, 8.0)}

    assert [spread(costs, sizes, budget) for budget in (0, 2, 4, 6, 8)] == [
        {"a": 0, "b": 0},
        {"a": 1, "b": 0},
        {"a": 1, "b": 1},
        {"a": 1, "b": 2},
        {"a": 2, "b": 2},
    ]


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_codes_of_6_bits_become_bytes_when_a_session_is_loaded(
    tmp_path: Path, target: Target
) -> None:
    values = np.random.default_rng(5).standard_normal((6, 128), np.float32)
    encoding = block_encoding(6, 128)
    parts = quantise(values, encoding)
    (tmp_path / "codes").write_bytes(parts["codes"].tobytes())
    lowering = LOWERINGS[target](Shape(128, 6, 1, 16, 8), {"m.weight": encoding})
    graph = GraphBuilder("block.0", lowering.opset)
    made = lowering.six_bit_codes(graph, "block.0:m.weight", 6, 128)
    graph.op("Identity", [made], outputs=["codes"])
    graph.output("codes", TensorProto.UINT8, (6, 128))
    extent = Extent("codes", 0, parts["codes"].size)
    onnx.save(graph.model({"block.0:m.weight.codes": extent}), str(tmp_path / "graph.onnx"))

    (codes,) = ort.InferenceSession(tmp_path / "graph.onnx").run(None, {})

    as_bytes = {"codes": codes, "scales": parts["scales"], "steps": parts["steps"]}
    found = decode(as_bytes, Encoding("step_blocks", 8, encoding.block))
    np.testing.assert_array_equal(found, decode(parts, encoding))
    assert not (codes & 3).any()


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("bits", [6.6, 7.8])
def test_a_mixed_model_is_nearer_to_fp32_than_int4(
    tmp_path: Path, bits: float, target: Target
) -> None:
    store = Store(tmp_path)
    tokens = np.random.default_rng(0).integers(3, 100, 48).tolist()
    found = compile_model(folder("grouped"), store, precision="mixed", bits=bits, target=target)

    fp32, int4, mixed = (
        model.chain(2).step(0, tokens, every_position=True)
        for model in (
            compiled("grouped"),
            compiled("grouped", "int4"),
            CompiledModel(store, found.manifest, found.blob),
        )
    )

    assert np.square(mixed - fp32).mean() < 0.7 * np.square(int4 - fp32).mean()

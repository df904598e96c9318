"""A shard in ONNX Runtime: its slots keep apart, and how a text is fed changes nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import ArtifactError, DeviceError, InputError
from edgeshard.runtime.loading import TILED_ATTENTION_OFF, choose_attention
from edgeshard.runtime.points import Stepper
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Precision, Target
from edgeshard.system import core_numbers
from support.tiny_llama import CONTEXT, VOCAB, CompiledModel, compiled

TEXT = [int(token) for token in np.random.default_rng(2).integers(0, VOCAB, 24)]
OTHER = [int(token) for token in np.random.default_rng(3).integers(0, VOCAB, 24)]
Kind = tuple[Precision, Target, bool]
KINDS: list[Kind] = [
    ("fp32", "ort", False),
    ("int8", "ort", False),
    ("int4", "ort", False),
    ("fp32", "portable", False),
    ("int4", "portable", False),
    ("fp16", "ort", False),
    ("fp32", "tensorrt", False),
    ("int8", "tensorrt", False),
    ("fp32", "ort", True),
    ("int4", "ort", True),
]
ALIKE_EVERYWHERE = [("int8", "ort")]  # of the others the processor's kernels decide
every_kind = pytest.mark.parametrize(("precision", "target", "int8_cache"), KINDS)


def _assert_close(found: np.ndarray, expected: np.ndarray, precision: Precision) -> None:
    """Equal to fp32 rounding; with 8-bit activations such rounding may move one by a whole step."""
    if precision == "fp32":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    else:
        assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()


@every_kind
def test_slots_are_independent(precision: Precision, target: Target, int8_cache: bool) -> None:
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    with model.chain() as alone, model.chain(slots=3) as shared:
        expected = alone.greedy(TEXT, 6)
        shared.step(0, OTHER, slot=0)
        found = [int(shared.step(0, TEXT, slot=1)[0].argmax())]
        shared.step(0, OTHER, slot=2)
        for position in range(len(TEXT), len(TEXT) + 5):
            shared.step(position, OTHER[:1], slot=0)
            shared.step(position, OTHER[:1], slot=2)
            found.append(int(shared.step(position, found[-1:], slot=1)[0].argmax()))

    assert found == expected


@pytest.mark.skipif(len(core_numbers()) < 2, reason="pins threads of ONNX Runtime to a second core")
def test_threads_of_a_pinned_session_lie_on_the_other_cores() -> None:
    model, (_, second) = compiled("grouped", "int4"), sorted(core_numbers())[:2]
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, 2)
    before = set(os.listdir("/proc/self/task"))

    session = ShardSession.open(model.store, shard, threads=2, cores=(0, second), context=CONTEXT)
    new = [int(task) for task in set(os.listdir("/proc/self/task")) - before]

    ends = time.monotonic() + 10  # a thread pins itself, once it gets a core
    while [os.sched_getaffinity(task) for task in new] != [{second}] and time.monotonic() < ends:
        time.sleep(0.01)
    assert [os.sched_getaffinity(task) for task in new] == [{second}]
    session.close()


@every_kind
@pytest.mark.parametrize("chunks", [(12, 12), (2, 22), (22, 2), (2,) * 12])
def test_a_prefill_in_chunks_is_bit_equal(
    precision: Precision, target: Target, int8_cache: bool, chunks: tuple[int, ...]
) -> None:
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    with model.chain() as whole, model.chain() as parts:
        expected = whole.step(0, TEXT, every_position=True)[0]
        found, position = [], 0
        for length in chunks:
            piece = TEXT[position : position + length]
            found.append(parts.step(position, piece, every_position=True)[0])
            position += length

        if target == "ort":
            np.testing.assert_array_equal(np.concatenate(found), expected)
        else:  # plain softmax over rows of another length may round differently
            np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("chunks", [(7, 8, 9), (23, 1), (1,) * 24])
def test_a_prefill_in_other_chunks_differs_by_rounding(
    precision: Precision, target: Target, int8_cache: bool, chunks: tuple[int, ...]
) -> None:
    """The 4-bit kernel takes rows in pairs, and every kernel treats a row alone in its own way."""
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    with model.chain() as whole, model.chain() as parts:
        expected = whole.step(0, TEXT, every_position=True)[0]
        position = 0
        for length in chunks:
            found = parts.step(position, TEXT[position : position + length])[0]
            position += length
            _assert_close(found, expected[position - 1], precision)


@every_kind
def test_a_slot_is_used_again_from_its_start(
    precision: Precision, target: Target, int8_cache: bool
) -> None:
    with compiled("grouped", precision, target, int8_cache=int8_cache).chain() as chain:
        expected = chain.greedy(TEXT, 4)
        chain.greedy(OTHER, 8)

        assert chain.greedy(TEXT, 4) == expected


@pytest.mark.parametrize(
    ("precision", "target", "int8_cache"),
    [("int4", "ort", False), ("fp32", "portable", False), ("int4", "ort", True)],
)
def test_a_kept_start_of_a_text_gives_the_bits_of_a_new_one(
    precision: Precision, target: Target, int8_cache: bool
) -> None:
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    with model.chain() as new, model.chain() as kept:
        expected = new.step(0, [*TEXT[:16], *OTHER[:8]])
        kept.step(0, TEXT)
        kept.step(len(TEXT), OTHER[:1])
        found = kept.step(16, OTHER[:8])

    np.testing.assert_array_equal(found, expected)


@every_kind
def test_a_copied_start_gives_the_bits_of_a_new_one(
    precision: Precision, target: Target, int8_cache: bool
) -> None:
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    with model.chain(3) as new, model.chain(3, slots=3) as copied:
        expected = new.step(0, [*TEXT[:16], *OTHER[:8]])
        copied.step(0, TEXT, slot=0)
        copied.step(0, OTHER, slot=2)
        copied.copy(0, 2, 16)
        found = copied.step(16, OTHER[:8], slot=2)
        source = copied.step(len(TEXT), OTHER[:1], slot=0)
        new.step(0, TEXT)
        untouched = new.step(len(TEXT), OTHER[:1])

    np.testing.assert_array_equal(source, untouched)
    if target == "ort":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@every_kind
def test_rows_of_a_batch_equal_the_same_rows_alone(
    precision: Precision, target: Target, int8_cache: bool
) -> None:
    """Rows with different numbers of positions behind them step together.

    To the bit, where the profiler's comparison of one unit at a time finds them alike.
    """
    model = compiled("grouped", precision, target, int8_cache=int8_cache)
    prompts = [TEXT, OTHER[:9], TEXT[5:20]]
    with model.chain(slots=3) as together, model.chain(slots=3) as alone:
        for slot, prompt in enumerate(prompts):
            together.step(0, prompt, slot=slot)
            alone.step(0, prompt, slot=slot)
        alike = all(Stepper(one).rows_alike(8, n) for one in together.shards for n in (2, 3))
        assert alike or (precision, target) not in ALIKE_EVERYWHERE
        for slot, prompt in enumerate(prompts):
            together.step(0, prompt, slot=slot)
        tokens = [[3], [90], [41]]
        for step in range(4):
            places = [len(prompt) + step for prompt in prompts]
            found = together.step(places, tokens)
            for slot, place in enumerate(places):
                expected = alone.step(place, tokens[slot], slot=slot)
                if alike:
                    np.testing.assert_array_equal(found[slot], expected[0])
                _assert_close(found[slot], expected[0], precision)
                assert found[slot].argmax() == expected[0].argmax()
            tokens = [[int(row.argmax())] for row in found]


@every_kind
def test_every_position_gives_what_each_prefix_gives(
    precision: Precision, target: Target, int8_cache: bool
) -> None:
    with compiled("grouped", precision, target, int8_cache=int8_cache).chain() as chain:
        every = chain.step(0, TEXT, every_position=True)
        assert every.shape == (1, len(TEXT), VOCAB)
        for length in (2, 9, len(TEXT)):
            last = chain.step(0, TEXT[:length])
            assert last.shape == (1, VOCAB)
            np.testing.assert_allclose(every[0, length - 1], last[0], rtol=1e-4, atol=1e-4)


def test_every_position_of_one_token_after_a_decode_step() -> None:
    with compiled("grouped").chain() as chain:
        chain.step(0, TEXT)
        chain.step(len(TEXT), [5])

        assert chain.step(len(TEXT), [5], every_position=True).shape == (1, 1, VOCAB)


# What is refused


def _open(model: CompiledModel, **options: int | str) -> ShardSession:
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    return ShardSession.open(model.store, shard, **options)  # type: ignore[arg-type]  # mixed options


def _ids(*tokens: int) -> np.ndarray:
    return np.array([tokens], np.int64)


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_positions_beyond_the_context_are_refused(target: Target) -> None:
    session = _open(compiled("grouped", "fp32", target), context=8)
    session.run(0, [0], _ids(1, 2, 3, 4, 5, 6, 7, 8))

    with pytest.raises(InputError, match="9 positions exceed the context 8"):
        session.run(0, [8], _ids(1))
    with pytest.raises(InputError, match="9 positions exceed the context 8"):
        session.run(0, [0], _ids(*range(9)))
    with pytest.raises(InputError, match="exceed"):
        session.run(0, [-1], _ids(1))


@pytest.mark.parametrize(("slot", "rows"), [(2, 1), (1, 2), (0, 3), (-1, 1)])
def test_rows_beyond_the_slots_are_refused(slot: int, rows: int) -> None:
    session = _open(compiled("grouped"), slots=2, context=8)

    with pytest.raises(InputError, match=rf"slots \[{slot}, {slot + rows}\) of 2"):
        session.run(slot, [0] * rows, np.ones((rows, 1), np.int64))


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(InputError, match=f"context {CONTEXT + 1} is more than the model's"):
        _open(compiled("grouped"), context=CONTEXT + 1)


def test_an_older_runtime_than_the_shard_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled("grouped", int8_cache=True)
    monkeypatch.setattr(ort, "__version__", "1.26.9")

    with pytest.raises(DeviceError, match=r"needs ONNX Runtime 1\.27, this device has 1\.26\.9"):
        _open(model, context=8)
    monkeypatch.setattr(ort, "__version__", "1.27.0")
    _open(model, context=8).close()


def test_an_unknown_provider_is_refused_with_those_that_are_here() -> None:
    model = compiled("grouped", "fp32", "portable")
    with pytest.raises(DeviceError, match=r"no QuantumExecutionProvider .* CPUExecutionProvider"):
        _open(model, provider="QuantumExecutionProvider", context=8)


def test_a_token_beyond_the_vocabulary_is_the_devices_error() -> None:
    session = _open(compiled("grouped"), context=8)

    with pytest.raises(DeviceError, match="ONNX Runtime failed in a step"):
        session.run(0, [0], _ids(VOCAB))


@pytest.mark.parametrize("what", ["graph", "weights"])
@pytest.mark.parametrize("how", ["changed", "truncated", "missing"])
def test_a_corrupt_blob_is_refused_before_a_session_exists(
    what: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("grouped")
    shard, _ = fuse(model.store, model.manifest, model.blob, 1, 3)
    store = Store(tmp_path)
    for blob in (shard.graph, *shard.weights):
        store.put(model.store.read(blob), blob.suffix)
    victim = shard.graph if what == "graph" else shard.weights[-1]
    data = bytearray(store.read(victim))
    store.path(victim).unlink()
    if how != "missing":
        data[len(data) // 2] ^= 1
        store.path(victim).write_bytes(data if how == "changed" else data[:-1])

    def too_late(*_: object, **__: object) -> None:
        pytest.fail("an inference session was made")

    monkeypatch.setattr(ort, "InferenceSession", too_late)

    with pytest.raises(ArtifactError, match=victim.digest):
        ShardSession.open(store, shard, context=8)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "context", "off"),
    [(9, 3, 2048, "1"), (32, 8, 2048, "1"), (32, 32, 2048, "0"), (32, 8, 131072, "0")],
)
def test_grouped_queries_with_small_scores_take_the_plain_attention(
    monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int, context: int, off: str
) -> None:
    monkeypatch.setenv(TILED_ATTENTION_OFF, "unset")
    attention = onnx.helper.make_node(
        "GroupQueryAttention", [], [], num_heads=heads, kv_num_heads=kv_heads
    )
    graph = onnx.helper.make_graph([attention], "one", [], [])

    choose_attention(onnx.helper.make_model(graph), context)

    assert os.environ[TILED_ATTENTION_OFF] == off

"""What `esc verify --quality` says: nothing lost in fp32, more lost with fewer bits, and where."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from edgeshard.artifacts.store import Store
from edgeshard.cli import app
from edgeshard.errors import InputError
from edgeshard.quality import ModelQuality, Quality, measure_quality
from edgeshard.schemas.common import Precision
from edgeshard.windows import windows_of
from support.tiny_llama import NUM_BLOCKS, VOCAB, compiled, folder, reference

LENGTH = 48
TOKENS = np.random.default_rng(5).integers(0, VOCAB, 5 * LENGTH + 7).tolist()


@cache
def _quality(precision: Precision) -> tuple[Quality, ModelQuality]:
    model = compiled("grouped", precision)
    found = measure_quality(
        model.store,
        [(model.manifest, model.blob)],
        folder("grouped"),
        windows_of(TOKENS, LENGTH, 3),
        threads=1,
    )
    return found, found.models[0]


def test_the_references_perplexity_is_transformers_own() -> None:
    windows = windows_of(TOKENS, LENGTH, 3)
    with torch.no_grad():
        losses = [
            float(reference("grouped")(ids, labels=ids).loss)
            for ids in map(torch.from_numpy, windows)
        ]

    found, _ = _quality("fp32")

    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.num_scored == 3 * (LENGTH - 1)


def test_fp32_loses_nothing() -> None:
    found, model = _quality("fp32")

    assert model.perplexity == pytest.approx(found.perplexity, rel=1e-5)
    assert 0 <= model.mean_kl < 1e-7
    assert model.top1_agreement == 1
    assert model.bits_per_weight == 32
    assert all(unit.so_far < 1e-4 for unit in model.units)


def test_fewer_bits_lose_more_in_every_unit() -> None:
    (_, fp32), (_, int8), (_, int4) = (_quality(p) for p in ("fp32", "int8", "int4"))

    names = ["embedding", *(f"block.{index}" for index in range(NUM_BLOCKS)), "head"]
    assert [unit.unit for unit in int4.units] == names
    for exact, fine, coarse in zip(fp32.units, int8.units, int4.units, strict=True):
        assert exact.alone < fine.alone < coarse.alone < 0.5
        assert fine.so_far < coarse.so_far
    assert fp32.mean_kl < int8.mean_kl < int4.mean_kl < int4.high_kl
    assert int4.top1_agreement < int8.top1_agreement
    assert int4.log_ratio == pytest.approx(
        np.log(int4.perplexity / _quality("int4")[0].perplexity), rel=1e-6
    )


def test_bits_count_scales_and_vectors_but_no_tables() -> None:
    _, model = _quality("int4")
    embedding, block, head = model.units[0], model.units[1], model.units[-1]

    # One block of 64 or three of 32 in a row: a byte for each, for every two one more, and a float.
    wide, wider = 4 + (8 + 8 + 32) / 64, 4 + (3 * 8 + 2 * 8 + 32) / 96
    assert embedding.bits_per_weight == wide
    square = 2 * 64 * 64 + 2 * 32 * 64 + 2 * 96 * 64  # these have rows of 64,
    down = 64 * 96  # this one of 96
    expected = (wide * square + wider * down + 32 * 2 * 64) / (square + down + 2 * 64)
    assert block.bits_per_weight == pytest.approx(expected)
    assert head.bits_per_weight == 32  # a norm; its matrix is the embedding's


def test_windows_are_spread_over_the_text() -> None:
    windows = windows_of(range(100), 10, 3)

    assert [ids.shape for ids in windows] == [(1, 10)] * 3
    assert [int(ids[0, 0]) for ids in windows] == [0, 30, 60]
    assert len(windows_of(range(100), 10, 50)) == 10


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="9 tokens, one window takes 10"):
        windows_of(range(9), 10, 3)


@pytest.fixture
def named_store(tmp_path: Path) -> Store:
    """A store with one model of which even the tokenizer is there."""
    tiny = compiled("grouped", "int8")
    tokenizer = Tokenizer(models.WordLevel({chr(i): i for i in range(VOCAB)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    store = tiny.store
    blob = store.put(tokenizer.to_str().encode(), ".json")
    store.put_model(msgspec.structs.replace(tiny.manifest, name="worded", tokenizer=blob))
    return store


def test_the_command_scores_the_text_that_comes_along(named_store: Store) -> None:
    outcome = CliRunner().invoke(
        app,
        [
            *("verify", "--store", str(named_store.root), "--model", "worded", "--quality"),
            *("--checkpoint", str(folder("grouped")), "--window", "32", "--windows", "2"),
            "--json",
        ],
    )

    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    assert found["num_scored"] == 62
    assert 0 < found["models"][0]["mean_kl"] < 0.1


def test_the_command_prints_a_row_for_each_model_and_unit(
    named_store: Store, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("of a text of my own, not long, but long enough", "utf-8")

    outcome = CliRunner().invoke(
        app,
        [
            *("verify", "--store", str(named_store.root), "--model", "worded"),
            *("--model", "worded", "--quality", "--text", str(text), "--window", "16"),
            *("--checkpoint", str(folder("grouped"))),
        ],
    )

    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["worded", "worded"]
    assert [line.split()[0] for line in lines[-3:]] == ["block.1", "block.2", "head"]


def test_quality_without_a_checkpoint_is_refused(named_store: Store) -> None:
    outcome = CliRunner().invoke(
        app, ["verify", "--store", str(named_store.root), "--model", "worded", "--quality"]
    )

    assert isinstance(outcome.exception, InputError)
    assert "--checkpoint" in str(outcome.exception)

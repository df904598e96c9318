"""What `esc verify --links` says: more is lost with fewer bits, and where the file goes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from edgeshard.artifacts.store import Store
from edgeshard.cli import app
from edgeshard.errors import InputError
from edgeshard.link_quality import measure_links
from edgeshard.schemas import files
from edgeshard.schemas.accuracy import Accuracy
from edgeshard.schemas.common import Activation
from edgeshard.windows import windows_of
from support.tiny_llama import VOCAB, compiled

TOKENS = np.random.default_rng(5).integers(0, VOCAB, 100).tolist()


@pytest.fixture(scope="module")
def found() -> Accuracy:
    model = compiled("grouped", "fp32")
    windows = windows_of(TOKENS, 32, 3)
    types: tuple[Activation, ...] = ("fp32", "fp16", "int8")
    return measure_links(model.store, model.manifest, model.blob, windows, types, (2, 3), threads=1)


def test_more_is_lost_with_fewer_bits(found: Accuracy) -> None:
    fp32, fp16, int8 = found.links
    assert (fp32.mean_kl, fp32.log_ratio, fp32.top1_agreement) == (0, 0, 1)
    assert 0 < fp16.mean_kl < int8.mean_kl < 0.1
    assert int8.mean_kl < int8.high_kl
    assert all(link.num_scored == 3 * 31 and link.cuts == (2, 3) for link in found.links)


def test_what_was_measured_at_other_cuts_is_taken_where_it_costs_most(found: Accuracy) -> None:
    int8 = found.links[2]
    worse = msgspec.structs.replace(int8, cuts=(1, 2), mean_kl=2 * int8.mean_kl)
    both = msgspec.structs.replace(found, links=(int8, worse))
    assert both.of("int8", (2, 3)) == int8
    assert both.of("int8", (4,)) == worse
    assert both.of("fp16", (4,)) is None


@pytest.mark.parametrize("cuts", [(), (0,), (3, 2), (2, 2), (5,)])
def test_cuts_that_no_chain_has_are_refused(cuts: tuple[int, ...]) -> None:
    model = compiled("grouped", "fp32")
    with pytest.raises(InputError, match="do not cut 5 units; give rising numbers from 1 to 4"):
        measure_links(
            model.store, model.manifest, model.blob, windows_of(TOKENS, 32, 1), ("int8",), cuts
        )


@pytest.fixture
def store() -> Store:
    tiny = compiled("grouped", "int8")
    tokenizer = Tokenizer(models.WordLevel({chr(i): i for i in range(VOCAB)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    blob = tiny.store.put(tokenizer.to_str().encode(), ".json")
    tiny.store.put_model(msgspec.structs.replace(tiny.manifest, name="linked", tokenizer=blob))
    return tiny.store


def _verify(store: Store, *words: str) -> str:
    given = ["verify", "--store", str(store.root), "--model", "linked", "--window", "32"]
    outcome = CliRunner().invoke(app, [*given, "--windows", "2", *words])
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


def test_the_command_prints_a_row_for_each_type_and_writes_the_file(
    store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "accuracy.json"
    text = _verify(store, "--links", "fp16", "--links", "int8", "--cuts", "2,3", "--out", str(out))
    assert [line.split()[0] for line in text.splitlines()] == ["fp32", "links", "fp16", "int8"]
    written = files.read(out, Accuracy)
    assert [link.activation for link in written.links] == ["fp16", "int8"]
    assert written.model == store.model("linked")[1].digest


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--links", "int4", "--cuts", "2"), "unknown link 'int4'; known: fp32, fp16, int8"),
        (("--links", "int8", "--cuts", "two"), "cuts 'two' are no numbers; give such as 10,20"),
        (("--links", "int8"), r"cuts \(none\) do not cut 5 units"),
        (("--links", "int8", "--model", "other"), "links are measured of one model, 2 were given"),
    ],
)
def test_what_makes_no_sense_is_refused(store: Store, words: tuple[str, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        _verify(store, *words)

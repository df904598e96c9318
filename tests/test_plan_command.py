"""`esc plan` as it is typed: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeshard.artifacts.store import Store
from edgeshard.cli.plan import plan
from edgeshard.errors import InputError, PlanError
from edgeshard.schemas import files
from edgeshard.schemas.accuracy import Accuracy, LinkAccuracy
from edgeshard.schemas.common import changed
from edgeshard.schemas.plan import Plan
from support.planner_cases import MIB, make_device, make_link, make_model, make_profile, measured

CLUSTER = """
format = "edgeshard.cluster/1"
source = "a"
operators = []
[[devices]]
name = "a"
address = "127.0.0.1"
port = 7000
public_key = "0000000000000000000000000000000000000000"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a manifest, a profile of two small devices, a cluster file."""
    model = make_model(6)
    Store(tmp_path / "store").put_model(model)
    units = measured(model, 0.01)
    devices = [make_device(name, units, memory_bytes=6 * MIB) for name in "ab"]
    links = [make_link("a", "b"), make_link("b", "a")]
    files.write(tmp_path / "profile.json", make_profile(devices, links))
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    """What the command prints; its errors come out as they are."""
    import typer

    app = typer.Typer()
    app.command()(plan)
    given = ["--profile", "profile.json", "--cluster", "cluster.toml", "--store", "store"]
    found = CliRunner().invoke(app, [*given, "--model", "tiny", "--context", "256", *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.stdout


def test_the_plan_is_printed_with_its_proof_and_written(folder: Path) -> None:
    text = run("--objective", "throughput")
    assert "proven optimal for throughput" in text
    made = files.read(folder / "plan.json", Plan)
    assert made.certificate is not None
    assert made.certificate.is_optimal


def test_json_is_the_only_thing_printed(folder: Path) -> None:
    value = json.loads(run("--format", "json", "--explain", "--front", "--replicas"))
    assert set(value) == {"plan", "explanation", "front", "replicas"}
    assert files.read(folder / "plan.json", Plan).stages[0].device == value["plan"]["source"]


def test_what_if_prints_both_plans_and_writes_none(folder: Path) -> None:
    text = run("--what-if", "device:a=1gib", "--what-if", "link:a-b=10mbps")
    assert "as it is:" in text
    assert not (folder / "plan.json").exists()


def test_transfers_are_as_the_cluster_file_says_unless_told(folder: Path) -> None:
    text = (folder / "cluster.toml").read_text()
    head, devices = text.split("[[devices]]")
    (folder / "cluster.toml").write_text(f'{head}transfers = "blocking"\n[[devices]]{devices}')
    run()
    assert files.read(folder / "plan.json", Plan).transfers == "blocking"
    run("--transfers", "overlapped", "--force")
    assert files.read(folder / "plan.json", Plan).transfers == "overlapped"


def test_each_stage_may_have_another_precision_down_to_the_floor(folder: Path) -> None:
    """fp32 is faster on both devices, but all of it has no room on either."""
    fp32, _ = Store(folder / "store").model("tiny")
    int4 = changed(fp32, name="small", precision="int4", units=make_model(6, MIB // 8).units)
    Store(folder / "store").put_model(int4)
    units = measured(fp32, 0.01) + measured(int4, 0.02)
    devices = [make_device("a", units, memory_bytes=6 * MIB)]
    devices.append(make_device("b", units, memory_bytes=MIB))
    links = [make_link("a", "b"), make_link("b", "a")]
    files.write(folder / "profile.json", make_profile(devices, links))
    both = ("--model", "small")
    run(*both)
    made = files.read(folder / "plan.json", Plan)
    assert [stage.precision for stage in made.stages] == ["fp32", "int4"]
    with pytest.raises(PlanError, match="no plan fits"):
        run(*both, "--min-precision", "int8", "--force")


def test_the_page_is_written_beside_the_plan(folder: Path) -> None:
    run("--html", "plan.html", "--new-tokens", "64")
    assert (folder / "plan.html").read_text("utf-8").startswith("<!doctype html>")
    assert files.read(folder / "plan.json", Plan).new_tokens == 64


def _accuracy(model: str) -> Accuracy:
    cost = LinkAccuracy(
        activation="int8",
        cuts=(4,),
        num_scored=100,
        mean_kl=0.0125,
        high_kl=0.1,
        log_ratio=0.01,
        log_ratio_error=0.001,
        top1_agreement=0.975,
    )
    return Accuracy(model=model, perplexity=20, window=64, links=(cost,))


def test_what_rounded_links_cost_is_shown_from_the_file_that_measured_it(folder: Path) -> None:
    digest = Store(folder / "store").model("tiny")[1].digest
    files.write(folder / "accuracy.json", _accuracy(digest))
    unknown = run("--activation", "int8")
    known = run("--activation", "int8", "--accuracy", "accuracy.json", "--force")
    assert "hidden states travel as int8; what that costs is not measured" in unknown
    assert "travel as int8: mean KL 1.25e-02, perplexity +1.01 %, top-1 97.5%" in known
    made = files.read(folder / "plan.json", Plan)
    assert made.accuracy == _accuracy(digest).links[0]
    assert made.links == ("int8",) * (len(made.stages) - 1)
    assert made.unsupported == ()


def test_what_another_models_links_cost_is_refused(folder: Path) -> None:
    files.write(folder / "accuracy.json", _accuracy("sha256:" + "0" * 64))
    with pytest.raises(InputError, match=r"was measured of model sha256:000.*esc verify --links"):
        run("--activation", "int8", "--accuracy", "accuracy.json")


def test_nothing_is_replaced_unasked(folder: Path) -> None:
    (folder / "plan.html").write_text("mine")
    with pytest.raises(InputError, match=r"plan\.html exists; give --force"):
        run("--html", "plan.html")
    assert not (folder / "plan.json").exists()
    run("--html", "plan.html", "--force")
    assert (folder / "plan.html").read_text("utf-8") != "mine"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--objective", "speed"), "unknown objective 'speed'; known: latency, throughput"),
        (("--format", "xml"), "unknown format 'xml'; known: text, json"),
        (("--activation", "int4"), "unknown activation 'int4'; known: fp32, fp16, int8"),
        (("--transfers", "never"), "unknown transfers 'never'; known: overlapped, blocking"),
        (("--min-precision", "bf16"), "unknown precision 'bf16'; known: int4, int8, fp16, fp32"),
        (("--method", "magic"), "unknown method 'magic'"),
        (("--what-if", "moon=full"), "is not understood"),
    ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(
    folder: Path, words: tuple[str, str], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(*words)
    assert text in str(caught.value)
    assert not (folder / "plan.json").exists()

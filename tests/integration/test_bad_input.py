"""Bad input: one clear line, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeshard.artifacts.store import Store
from edgeshard.local_run import default_checkpoint
from edgeshard.runtime.keys import make_keys
from edgeshard.runtime.local import free_ports
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster, Device
from edgeshard.schemas.profile import Profile
from support.esc import esc
from support.runtime_double import put_model

pytestmark = pytest.mark.timeout(180)


def names_in(store: Path) -> list[str]:
    return Store(store).models()


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    outcome = esc("compile", tmp_path / "absent.gguf", "--out", tmp_path / "store")
    assert outcome.code == 2
    assert "no checkpoint at" in outcome.complaint
    assert names_in(tmp_path / "store") == []


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    whole = default_checkpoint().read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: len(whole) // 2])
    outcome = esc("compile", broken, "--out", tmp_path / "store")
    assert outcome.code == 2
    assert "fetch it again" in outcome.complaint
    assert names_in(tmp_path / "store") == []
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_an_unsupported_architecture_is_named_with_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "mixtral").mkdir()
    (tmp_path / "mixtral" / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    outcome = esc("compile", tmp_path / "mixtral", "--out", tmp_path / "store")
    assert outcome.code == 2
    assert "architecture 'mixtral' is not supported; supported: llama, " in outcome.complaint


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--precision", "int3", "stored, fp32, fp16, bf16, int8, int4"),
        ("--target", "cuda", "ort, portable, tensorrt"),
        ("--objective", "cheapest", "latency, throughput"),
    ],
)
def test_an_unknown_choice_is_named_with_those_that_are(
    tmp_path: Path, option: str, value: str, known: str
) -> None:
    outcome = esc("compile", tmp_path, "--out", tmp_path / "store", option, value)
    assert outcome.code == 2
    assert f"unknown {option[2:]} {value!r}; known: {known}" in outcome.complaint
    assert not (tmp_path / "store").exists()


def test_a_model_that_is_not_in_the_store(tmp_path: Path) -> None:
    outcome = esc("verify", "--store", tmp_path / "store", "--model", "absent")
    assert outcome.code == 2
    assert "no model 'absent'" in outcome.complaint


def test_a_corrupt_store_names_the_blob_and_both_digests(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest, _ = put_model(store)
    blob = manifest.units[0].graph
    path = store.path(blob)
    path.chmod(0o644)
    path.write_bytes(b"\0" * blob.size_bytes)
    outcome = esc("verify", "--store", store.root, "--model", manifest.name)
    assert outcome.code == 3
    assert f"expected {blob.digest}, found sha256:" in outcome.complaint


def cluster_file(folder: Path) -> tuple[Path, Path]:
    operator, device = make_keys(folder / "keys", "me"), make_keys(folder / "keys", "box")
    first = free_ports(4)
    box = Device(name="box", address="127.0.0.1", port=first, public_key=device.public)
    cluster = Cluster(source="box", operators=(operator.public,), devices=(box,))
    path = folder / "cluster.json"
    path.write_bytes(files.encode(cluster))
    return path, folder / "keys" / "me.secret"


def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    cluster, key = cluster_file(tmp_path)
    store = Store(tmp_path / "store")
    manifest, _ = put_model(store)
    out = tmp_path / "profile.json"
    ways = ("--cluster", cluster, "--key", key, "--store", store.root, "--model", manifest.name)
    outcome = esc("profile", *ways, "--out", out)
    assert outcome.code == 6
    assert "device box does not answer at tcp://127.0.0.1:" in outcome.complaint
    assert not out.exists()


def test_a_client_without_a_coordinator(tmp_path: Path) -> None:
    cluster, key = cluster_file(tmp_path)
    outcome = esc("generate", "hello", "--cluster", cluster, "--key", key)
    assert outcome.code == 6
    assert "tcp://127.0.0.1:" in outcome.complaint


def test_a_file_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    cluster, key = cluster_file(tmp_path)
    plain = json.loads(cluster.read_text()) | {"format": "edgeshard.cluster/2"}
    cluster.write_text(json.dumps(plain))
    outcome = esc("status", "--cluster", cluster, "--key", key)
    assert outcome.code == 2
    assert "'edgeshard.cluster/2', this version reads 'edgeshard.cluster/1'" in outcome.complaint


def test_a_cluster_file_with_a_mistake_names_its_place(tmp_path: Path) -> None:
    cluster, key = cluster_file(tmp_path)
    plain = json.loads(cluster.read_text())
    plain["devices"][0]["port"] = 80
    cluster.write_text(json.dumps(plain))
    outcome = esc("status", "--cluster", cluster, "--key", key)
    assert outcome.code == 2
    assert "devices[0].port: 80 is less than the minimum of 1024" in outcome.complaint


def test_an_existing_plan_is_not_replaced_unasked(tmp_path: Path) -> None:
    cluster, _ = cluster_file(tmp_path)
    store = Store(tmp_path / "store")
    manifest, _ = put_model(store)
    (tmp_path / "profile.json").write_bytes(files.encode(Profile(models=(), devices=(), links=())))
    (tmp_path / "plan.json").write_text("mine")
    outcome = esc(
        *("plan", "--profile", "profile.json", "--cluster", cluster, "--store", store.root),
        *("--model", manifest.name),
        folder=tmp_path,
    )
    assert outcome.code == 2
    assert "plan.json exists; give --force" in outcome.complaint
    assert (tmp_path / "plan.json").read_text() == "mine"

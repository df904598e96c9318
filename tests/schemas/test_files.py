"""The files: their committed schemas, what is refused and how, and what survives a round trip."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.errors import InputError
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster
from edgeshard.schemas.common import Blob, Schema
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.shard import ShardManifest
from support.tiny_llama import compiled

FOLDER = Path(files.__file__).parent / "json"
KEY = "k" * 40
CLUSTER: dict[str, Any] = {
    "format": "edgeshard.cluster/1",
    "source": "laptop",
    "operators": [KEY],
    "clients": [],
    "devices": [{"name": "laptop", "address": "127.0.0.1", "port": 7000, "public_key": KEY}],
}


def _cluster(**changes: object) -> bytes:
    return json.dumps(CLUSTER | changes).encode()


def _device(**changes: object) -> bytes:
    return _cluster(devices=[CLUSTER["devices"][0] | changes])


@pytest.mark.parametrize("kind", files.KINDS)
def test_the_committed_schema_is_the_types(kind: str) -> None:
    committed = (FOLDER / f"{kind}.json").read_text("utf-8")

    assert committed == files.schema_text(files.KINDS[kind])
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(files.KINDS)


def _values() -> list[Schema]:
    model = compiled("grouped", "int4")
    shard, blob = fuse(model.store, model.manifest, model.blob, 0, 3)
    return [model.manifest, shard, blob, files.decode(_cluster(), Cluster, "cluster")]


def test_values_survive_a_round_trip() -> None:
    for value in _values():
        data = files.encode(value)
        assert files.decode(data, type(value), "it") == value
        assert files.encode(files.decode(data, type(value), "it")) == data


def test_encoded_values_hold_to_their_schema_and_are_readable() -> None:
    for value in _values():
        data = files.encode(value)
        kind = next(name for name, item in files.KINDS.items() if item is type(value))
        jsonschema.validate(json.loads(data), json.loads(files.schema_text(files.KINDS[kind])))
        assert data.startswith(b"{\n  ")
        assert data.endswith(b"}\n")


def test_unknown_fields_are_ignored() -> None:
    found = files.decode(_cluster(colour="blue"), Cluster, "cluster")

    assert found == files.decode(_cluster(), Cluster, "cluster")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"{", "c.json is not JSON"),
        (b"\xff\xfe", "c.json is not JSON"),
        (b"", "c.json is not JSON"),
        (b"[]", "format 'list', this version reads 'edgeshard.cluster/1'"),
        (_cluster(format="edgeshard.cluster/2"), "'edgeshard.cluster/2', .*'edgeshard.cluster/1'"),
        (_cluster(format="edgeshard.plan/1"), "'edgeshard.plan/1', .*'edgeshard.cluster/1'"),
        (_cluster(format=7), "format 7"),
        (_cluster(source="../x"), "c.json: source: "),
        (_cluster(devices=[]), "c.json: devices: "),
        (_device(port=80), r"c.json: devices\[0\].port: 80 "),
        (_device(port="7000"), r"c.json: devices\[0\].port: "),
        (_device(public_key="short"), r"c.json: devices\[0\].public_key: "),
        (_device(address="a b"), r"c.json: devices\[0\].address: "),
        (_device(memory_mib=0), r"c.json: devices\[0\].memory_mib: "),
        (json.dumps({"format": "edgeshard.cluster/1"}).encode(), "c.json: the file: "),
    ],
)
def test_what_is_no_cluster_is_refused_with_the_place(data: bytes, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        files.decode(data, Cluster, "c.json")

    assert "\n" not in str(caught.value)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InputError, match="is not JSON"):
        files.decode(b"[" * 100_000, Cluster, "c.json")


def test_a_model_is_no_shard() -> None:
    data = files.encode(compiled("grouped").manifest)

    with pytest.raises(InputError, match=r"edgeshard\.model/1.*edgeshard\.shard/1"):
        files.decode(data, ShardManifest, "it")


def test_a_digest_must_be_one() -> None:
    plain = json.loads(files.encode(compiled("grouped").manifest))
    plain["units"][1]["graph"]["digest"] = "sha256:../../etc/passwd"

    with pytest.raises(InputError, match=r"units\[1\]\.graph\.digest"):
        files.convert(plain, ModelManifest, "it")


# On disk


def test_a_written_file_is_read_again(tmp_path: Path) -> None:
    blob = Blob(digest="sha256:" + "0" * 64, size_bytes=1, suffix=".json")

    files.write(tmp_path / "deep" / "b.json", blob)

    assert files.read(tmp_path / "deep" / "b.json", Blob) == blob
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.json"]


def test_toml_is_read_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(
        f'format = "edgeshard.cluster/1"\nsource = "laptop"\noperators = ["{KEY}"]\nclients = []\n'
        f'[[devices]]\nname = "laptop"\naddress = "127.0.0.1"\nport = 7000\npublic_key = "{KEY}"\n'
    )

    assert files.read(path, Cluster) == files.decode(_cluster(), Cluster, "cluster")


@pytest.mark.parametrize("name", ["absent.json", "folder.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()

    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        files.read(tmp_path / name, Blob)


def test_bad_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("source = ")

    with pytest.raises(InputError, match=r"c\.toml is not TOML"):
        files.read(tmp_path / "c.toml", Cluster)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.touch()
    os.truncate(path, files.MAX_FILE_BYTES + 1)

    with pytest.raises(InputError, match="at most 67108864 are read"):
        files.read(path, Blob)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.json"
    blob = Blob(digest="sha256:" + "0" * 64, size_bytes=1, suffix=".json")
    files.write(path, blob)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*b\.json: No space left"):
        files.write(path, Blob(digest="sha256:" + "1" * 64, size_bytes=2, suffix=".json"))

    assert files.read(path, Blob) == blob
    assert [item.name for item in tmp_path.iterdir()] == ["b.json"]

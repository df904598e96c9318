"""The client says what is wrong with a request before it sends anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeshard.errors import InputError, LinkError
from edgeshard.runtime import client as module
from edgeshard.runtime.channel import KeyPair
from edgeshard.runtime.client import Client
from edgeshard.schemas.cluster import Cluster, Device

KEYS = KeyPair.generate()
CLUSTER = Cluster(
    source="here",
    operators=(KEYS.public,),
    devices=(Device(name="here", address="127.0.0.1", port=1024, public_key=KEYS.public),),
)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "either"),
        ({"prompt": "a", "messages": []}, "either"),
        ({"messages": [], "raw": True}, "raw"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "temperature": -1.0}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "top_p": 0.0}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"prompt": "a" * 600_000}, "at most"),
    ],
)
def test_an_argument_out_of_range_is_named(options: dict[str, object], problem: str) -> None:
    with Client.connect(CLUSTER, KEYS) as client, pytest.raises(InputError, match=problem):
        client.generate(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_no_coordinator_is_a_link_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with Client.connect(CLUSTER, KEYS) as client, pytest.raises(LinkError, match="esc deploy"):
        client.generate("a")


def test_a_missing_cluster_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Client.connect(tmp_path / "cluster.toml", KEYS)

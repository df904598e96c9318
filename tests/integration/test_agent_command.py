"""`esc agent` as a process: what its options do, before anything is deployed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from edgeshard.runtime.keys import make_keys
from edgeshard.runtime.local import free_ports
from support.esc import esc

pytestmark = pytest.mark.timeout(60)


def options(folder: Path, *lines: str) -> list[str]:
    """Of an agent that is alone in its cluster; `lines` are more of its device."""
    keys = make_keys(folder / "keys", "laptop")
    text = (
        f'format = "edgeshard.cluster/1"\nsource = "laptop"\noperators = ["{keys.public}"]\n'
        f'[[devices]]\nname = "laptop"\naddress = "127.0.0.1"\nport = {free_ports(4)}\n'
        f'public_key = "{keys.public}"\n' + "".join(f"{line}\n" for line in lines)
    )
    (folder / "cluster.toml").write_text(text, "utf-8")
    paths = ["--cluster", folder / "cluster.toml", "--key", folder / "keys" / "laptop.secret"]
    return ["agent", "--name", "laptop", "--store", str(folder / "store"), *map(str, paths)]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["cores = [4000]"], "is to use cores 4000; "),
        (["cores = [0, 0]"], "is to use cores 0, 0; "),
        (["cores = [0]", "threads = 2"], "a thread is pinned to each core: leave threads out"),
    ],
)
def test_cores_that_cannot_be_had_are_refused(
    tmp_path: Path, lines: list[str], complaint: str
) -> None:
    outcome = esc(*options(tmp_path, *lines))

    assert outcome.code == 2
    assert complaint in outcome.complaint


def test_metrics_beyond_loopback_are_refused_by_name(tmp_path: Path) -> None:
    outcome = esc(*options(tmp_path), "--metrics", "0.0.0.0:9464")
    assert outcome.code == 2
    assert "could be read by anyone who reaches this device" in outcome.complaint
    assert "--metrics-beyond-loopback" in outcome.complaint


def test_an_agent_logs_json_and_serves_metrics_until_it_is_told_to_end(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_ports(1)}"
    words = [*options(tmp_path), "--log-json", "--metrics", place]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "edgeshard", *words],
        env={**os.environ, "EDGESHARD_LOG": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stderr is not None
        started = json.loads(agent.stderr.readline())
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as reply:
            metrics = reply.read().decode()
        agent.terminate()
        ended = json.loads(agent.stderr.readline())
    assert (started["event"], started["device"]) == ("agent.started", "laptop")
    assert (ended["event"], agent.returncode) == ("agent.ends", 0)
    assert 'edgeshard_info{device="laptop"' in metrics

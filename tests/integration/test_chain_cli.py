"""The commands of a chain, as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgeshard.cli.agent import agent
from edgeshard.cli.deploy import Narrator, deploy, remarks
from edgeshard.cli.generate import generate
from edgeshard.cli.keys import keys
from edgeshard.cli.status import status
from edgeshard.cli.stop import stop
from edgeshard.cli.trace import trace
from edgeshard.errors import InputError
from edgeshard.runtime.deploy import Deployment, DeployProgress
from edgeshard.runtime.local import LocalCluster
from edgeshard.schemas.common import changed
from edgeshard.schemas.targets import CPU
from support.runtime_chain import deploy_double, local_cluster, plan_of
from support.runtime_double import expected

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]
RUNNER = CliRunner()
SECRET = "the vault opens at nine"


def app() -> typer.Typer:
    commands = typer.Typer()
    for command in (keys, agent, deploy, generate, status, stop, trace):
        commands.command()(command)
    return commands


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(tmp_path_factory.mktemp("cli")) as cluster:
            deploy_double(cluster)
            yield cluster


def ways(chain: LocalCluster) -> list[str]:
    return ["--cluster", str(chain.cluster_path), "--key", str(chain.key_path)]


def test_generate_streams_text_and_tells_its_timings(chain: LocalCluster) -> None:
    words = ["generate", "hello", "--raw", "--max-tokens", "9", *ways(chain)]
    done = RUNNER.invoke(app(), words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == bytes(expected(b"hello", 9)).decode(errors="replace") + "\n"
    assert "5 prompt tokens, 9 tokens (length); first after" in done.stderr


def test_generate_gives_json(chain: LocalCluster) -> None:
    words = ["generate", "hello", "--raw", "--max-tokens", "9", "--json", *ways(chain)]
    answer = json.loads(RUNNER.invoke(app(), words, catch_exceptions=False).stdout)
    assert answer["token_ids"] == expected(b"hello", 9)
    assert len(answer["token_seconds"]) == 8


def test_trace_writes_a_chrome_trace_and_says_what_a_token_takes(
    chain: LocalCluster, tmp_path: Path
) -> None:
    out = tmp_path / "trace.json"
    words = ["trace", SECRET, "--raw", "--max-tokens", "9", "--out", str(out), *ways(chain)]
    done = RUNNER.invoke(app(), words, catch_exceptions=False, env={"COLUMNS": "200"})
    trace = json.loads(out.read_text())
    lanes = [one["args"]["name"] for one in trace["traceEvents"] if one["name"] == "thread_name"]
    assert lanes[:3] == ["source", "source -> device-0", "device-0"]
    computed = [one for one in trace["traceEvents"] if one["name"] == "compute"]
    assert len(computed) == 3 * 9
    assert "a token" in done.stdout
    assert "8 tokens" in done.stdout
    assert SECRET not in done.stdout + out.read_text()


def test_trace_gives_json(chain: LocalCluster, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    words = ["trace", "hello", "--raw", "--json", "--out", str(out), *ways(chain)]
    found = json.loads(RUNNER.invoke(app(), words, catch_exceptions=False).stdout)
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1.0)
    assert found["token_seconds"] > 0


def test_status_shows_a_table_or_json(chain: LocalCluster) -> None:
    done = RUNNER.invoke(app(), ["status", *ways(chain)], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert all(name in done.stdout for name in chain.names)
    found = json.loads(RUNNER.invoke(app(), ["status", "--json", *ways(chain)]).stdout)
    assert [one["status"]["stage"]["index"] for one in found] == [0, 1, 2]


def test_keys_prints_what_goes_into_the_cluster_file(tmp_path: Path) -> None:
    done = RUNNER.invoke(app(), ["keys", "phone", "--dir", str(tmp_path / "keys")])
    assert done.stdout == (tmp_path / "keys" / "phone.public").read_text()


def test_an_unknown_device_is_refused_with_those_that_are(chain: LocalCluster) -> None:
    words = ["agent", "--name", "x", "--store", str(chain.folder / "x"), *ways(chain)]
    with pytest.raises(InputError, match="it has device-0, device-1, device-2"):
        RUNNER.invoke(app(), words, catch_exceptions=False)


def test_deploy_says_what_may_change_tokens() -> None:
    plan = changed(plan_of("sha256:" + "0" * 64, ["a"], [CPU], 64), slots=4, company=("a",))
    deployment = Deployment(1, (), 0, 0, is_mixed=True, links=("fp32", "int8"))
    apart, together = (
        [line.split(":")[0] for line in remarks(changed(plan, groups=groups), deployment)]
        for groups in (4, 2)
    )
    assert apart == ["mixed", "lossy"]
    assert together == ["mixed", "lossy", "company"]


def test_progress_of_a_transfer_is_told_by_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Narrator()
    for done in range(0, 1001):
        tell(DeployProgress("phone", "sending", done, 1000))
    assert len(capsys.readouterr().err.splitlines()) == 11


@pytest.mark.parametrize("command", ["keys", "agent", "deploy", "generate", "status", "trace"])
def test_every_command_explains_itself(command: str) -> None:
    done = RUNNER.invoke(app(), [command, "--help"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) > 5


def test_stop_leaves_agents_without_stages(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(tmp_path) as cluster:
            deploy_double(cluster)
            words = ["stop", "--drain", "1", *ways(cluster)]
            done = RUNNER.invoke(app(), words, catch_exceptions=False)
            found = RUNNER.invoke(app(), ["status", "--json", *ways(cluster)])
    assert done.exit_code == 0
    assert done.stdout.count("stopped") == 3
    assert [device["status"]["stage"] for device in json.loads(found.stdout)] == [None] * 3

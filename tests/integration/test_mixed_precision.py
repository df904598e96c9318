"""A chain whose stages have weights of different precision, as real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.cli.deploy import deploy as deploy_command
from edgeshard.compiler.compile import compile_model
from edgeshard.errors import InputError
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.profile_cluster import profile_cluster
from edgeshard.schemas import files
from edgeshard.schemas.common import Precision, changed
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.targets import CPU
from support.runtime_chain import plan_of
from support.runtime_double import byte_tokenizer
from support.tiny_llama import CompiledModel, folder

pytestmark = pytest.mark.timeout(90)
PROMPT = "a chain of three"
CUTS = (2, 3)
PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompiledModel, ...]:
    """The same checkpoint in int8 and in fp32, in one store."""
    store = Store(tmp_path_factory.mktemp("store"))
    tokenizer = store.put(byte_tokenizer().to_str().encode(), ".json")
    found = []
    for precision in PRECISIONS:
        made = compile_model(folder("grouped"), store, precision=precision, name=precision)
        manifest = changed(made.manifest, tokenizer=tokenizer)
        found.append(CompiledModel(store, manifest, store.put_model(manifest)))
    return tuple(found)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("mixed"), 3, threads=1) as found:
        yield found


def mixed_plan(models: tuple[CompiledModel, ...], cluster: LocalCluster) -> Plan:
    """int8, fp32, int8."""
    int8, fp32 = models
    plan = plan_of(int8.blob.digest, cluster.names, [CPU] * 3, 128)
    edges = (0, *CUTS, len(int8.manifest.units))
    return changed(
        plan,
        stages=tuple(
            changed(stage, start=start, stop=stop, model=one.blob.digest)
            for stage, start, stop, one in zip(
                plan.stages, edges[:-1], edges[1:], (int8, fp32, int8), strict=True
            )
        ),
    )


def test_the_tokens_are_those_of_one_process_and_the_answer_is_flagged(
    models: tuple[CompiledModel, ...], cluster: LocalCluster
) -> None:
    int8, fp32 = models
    files.write(cluster.folder / "plan.json", mixed_plan(models, cluster))
    command = typer.Typer()
    command.command()(deploy_command)
    words = [str(cluster.folder / "plan.json"), "--store", str(int8.store.root)]
    words += ["--cluster", str(cluster.cluster_path), "--key", str(cluster.key_path)]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    with Client.connect(cluster.cluster_path, cluster.key_path) as client:
        result = client.generate(PROMPT, raw=True, max_tokens=24, ignore_eos=True).finish()
    with int8.chain(*CUTS, models=(int8, fp32, int8)) as chain:
        assert list(result.token_ids) == chain.greedy(list(PROMPT.encode()), 24)
    assert "mixed: stages differ in provider, target, precision" in done.stdout
    assert result.is_mixed


def test_a_stage_of_a_model_that_is_not_there_is_refused_by_name(
    models: tuple[CompiledModel, ...], cluster: LocalCluster
) -> None:
    int8, fp32 = models
    plan = mixed_plan(models, cluster)
    with pytest.raises(InputError, match=f"stage 1 of the plan is of model {fp32.blob.digest}"):
        deploy(int8.store, int8.manifest, int8.blob, plan, cluster.cluster, cluster.keys, fuse)


def test_a_profile_of_both_has_the_figures_of_each(
    models: tuple[CompiledModel, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    int8, fp32 = models
    with LocalCluster(tmp_path_factory.mktemp("profiled"), 1, threads=1) as local:
        profile = profile_cluster(
            int8.store,
            int8.manifest,
            int8.blob,
            local.cluster,
            local.keys,
            others=[(fp32.manifest, fp32.blob)],
        )
    assert profile.models == (int8.blob.digest, fp32.blob.digest)
    (device,) = profile.devices
    for model in models:
        wanted = {unit.structure for unit in model.manifest.units}
        precision = model.manifest.precision
        assert wanted == {u.structure for u in device.units if u.precision == precision}

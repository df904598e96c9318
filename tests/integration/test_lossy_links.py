"""Three stages as real processes, hidden states between them in the types that the plan says.

Tolerance: 0.1 % of the spread of the logits for fp16, 5 % for int8; fp32 is bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.errors import EdgeShardError
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import Deployment, deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.schemas.common import Activation, changed
from edgeshard.schemas.targets import CPU
from support.runtime_chain import connect, deploy_double, local_cluster, plan_of
from support.runtime_double import byte_tokenizer, expected
from support.tiny_llama import CompiledModel, folder

pytestmark = pytest.mark.timeout(90)
CUTS = (2, 3)
PROMPTS = ("a chain of three", "company", "it changes no token")
NUM_TOKENS = 24
TOLERANCE: dict[Activation, float] = {"fp16": 1e-3, "int8": 5e-2}
Links = tuple[Activation, Activation]
EVERY_LINKS: tuple[Links, ...] = (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    store = Store(tmp_path_factory.mktemp("store"))
    made = compile_model(folder("grouped"), store, precision="fp32")
    tokenizer = store.put(byte_tokenizer().to_str().encode(), ".json")
    manifest = changed(made.manifest, tokenizer=tokenizer)
    return CompiledModel(store, manifest, store.put_model(manifest))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("lossy"), 3, threads=1) as found:
        yield found


def _deploy(
    model: CompiledModel, cluster: LocalCluster, links: Links, company: tuple[str, ...] = ()
) -> Deployment:
    plan = plan_of(model.blob.digest, cluster.names, [CPU] * 3, 128)
    edges = (0, *CUTS, len(model.manifest.units))
    stages = tuple(
        changed(stage, start=start, stop=stop, activation=link)
        for stage, start, stop, link in zip(
            plan.stages, edges[:-1], edges[1:], (*links, None), strict=True
        )
    )
    plan = changed(plan, stages=stages, slots=len(PROMPTS), company=company)
    return deploy(
        model.store, model.manifest, model.blob, plan, cluster.cluster, cluster.keys, fuse
    )


@pytest.mark.parametrize("links", [*EVERY_LINKS, ("int8", "fp16")])
def test_a_chain_gives_the_tokens_of_one_process_that_rounds_alike_in_any_company(
    model: CompiledModel, cluster: LocalCluster, links: Links
) -> None:
    company = tuple(cluster.names) if "int8" in links else ()
    deployment = _deploy(model, cluster, links, company)
    options = {"raw": True, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    with Client.connect(cluster.cluster_path, cluster.key_path) as client:
        alone = client.generate(PROMPTS[0], **options).finish()  # type: ignore[arg-type]
        running = [client.generate(p, **options) for p in PROMPTS]  # type: ignore[arg-type]
        results = [generation.finish() for generation in running]

    assert alone.token_ids == results[0].token_ids
    for prompt, result in zip(PROMPTS, results, strict=True):
        with model.chain(*CUTS, links=links) as chain:
            assert list(result.token_ids) == chain.greedy(list(prompt.encode()), NUM_TOKENS)
    is_lossy = links != ("fp32", "fp32")
    assert (deployment.is_lossy, deployment.links) == (is_lossy, links)
    assert (alone.is_lossy, alone.links) == (is_lossy, links)
    assert {one.depends_on_company for one in (alone, *results)} == {bool(company)}


@pytest.mark.parametrize("activation", ["fp32", "fp16", "int8"])
def test_logits_stay_within_the_tolerance(model: CompiledModel, activation: Activation) -> None:
    tokens = list(PROMPTS[2].encode())
    with model.chain() as one, model.chain(*CUTS, links=(activation, activation)) as chain:
        whole = one.step(0, tokens, every_position=True)
        rounded = chain.step(0, tokens, every_position=True)

    if activation == "fp32":
        assert np.array_equal(rounded, whole)
    else:
        error = np.sqrt(np.mean((rounded - whole) ** 2)) / whole.std()
        assert 0 < error < TOLERANCE[activation]


def test_states_that_cannot_travel_end_their_own_request_by_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(tmp_path) as cluster:
            deploy_double(cluster, ("double", "nan", "double"), activation="fp16")
            with connect(cluster) as client:
                other = client.generate("other", raw=True, max_tokens=3, ignore_eos=True)
                with pytest.raises(
                    EdgeShardError, match=r"device-1.*cannot travel as fp16.*--activation fp32"
                ):
                    client.generate("exactly8", raw=True, max_tokens=20, ignore_eos=True).finish()
                assert list(other.finish().token_ids) == expected(b"other", 3)
                after = client.generate("again", raw=True, max_tokens=3, ignore_eos=True)
                assert list(after.finish().token_ids) == expected(b"again", 3)

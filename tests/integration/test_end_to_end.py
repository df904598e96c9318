"""The main job: a checkpoint, compiled, profiled, planned, deployed, streams the right tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.compile import compile_model
from edgeshard.compiler.finished import Compiled
from edgeshard.errors import PlanError
from edgeshard.local_run import Running, default_checkpoint, running_chain
from edgeshard.planner import make_plan
from edgeshard.runtime.client import Client
from edgeshard.runtime.session import ShardSession
from edgeshard.verify import greedy, reference_model

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
CONTEXT = 256
NUM_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at one hundred degrees because",
    "My three favourite animals are",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fp32(store: Store) -> Compiled:
    return compile_model(default_checkpoint(), store, precision="fp32")


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory, store: Store, fp32: Compiled
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("chain")
    with running_chain(folder, store, fp32.manifest, fp32.blob, context=CONTEXT) as running:
        yield running


def test_greedy_tokens_over_three_stages_are_those_of_transformers(
    chain: Running, store: Store, fp32: Compiled
) -> None:
    assert len(chain.plan.stages) == 3
    assert fp32.manifest.tokenizer is not None
    tokenizer = Tokenizer.from_str(store.read(fp32.manifest.tokenizer).decode())
    reference = reference_model(open_checkpoint(default_checkpoint()))
    with Client.connect(chain.local.cluster_path, chain.local.key_path) as client:
        for prompt in PROMPTS:
            found = client.generate(prompt, raw=True, max_tokens=NUM_TOKENS, ignore_eos=True)
            ids = torch.tensor([tokenizer.encode(prompt).ids])
            expected = reference.generate(
                ids, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
            )
            assert list(found.finish().token_ids) == expected[0, ids.shape[1] :].tolist(), prompt


def test_the_budget_of_one_device_is_too_small_and_the_error_says_by_how_much(
    chain: Running, fp32: Compiled
) -> None:
    source = next(d for d in chain.profile.devices if d.name == chain.cluster.source)
    alone = type(chain.profile)(models=chain.profile.models, devices=(source,), links=())
    with pytest.raises(PlanError, match=rf"lacks \d+ bytes .* on {source.name}"):
        make_plan(fp32.manifest, fp32.blob.digest, alone, source.name, "latency", CONTEXT, 1)
    assert min(a.missing_bytes for a in chain.plan.one_device) > 0


def test_every_stage_stays_within_its_budget_and_its_prediction(chain: Running) -> None:
    limit = {d.name: (d.memory_mib or 0) * 2**20 for d in chain.cluster.devices}
    for stage, report in zip(chain.plan.stages, chain.deployment.stages, strict=True):
        assert report.resident_bytes <= limit[stage.device]
        assert report.resident_bytes <= 1.15 * stage.memory.total_bytes


def test_a_representative_stands_for_the_real_block(chain: Running) -> None:
    blocks = [u for d in chain.profile.devices for u in d.units if u.kind == "block"]
    assert len(blocks) == 3
    for block in blocks:
        assert len(block.sampled) == 1
        assert block.sample_deviation is not None


def test_int4_answers_the_question_and_no_process_is_left(tmp_path: Path, store: Store) -> None:
    compiled = compile_model(default_checkpoint(), store, precision="int4")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with (
        running_chain(
            tmp_path, store, compiled.manifest, compiled.blob, context=CONTEXT
        ) as running,
        Client.connect(running.local.cluster_path, running.local.key_path) as client,
    ):
        result = client.generate("What is the capital of France?", max_tokens=32).finish()
        started = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert result.text.startswith("The capital of France is Paris")
    assert result.finish_reason == "stop"
    assert started
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_a_cut_changes_no_token(store: Store) -> None:
    manifest, blob = store.model(f"{default_checkpoint().stem}-int4")
    whole = greedy(store, manifest, blob, [1, 2, 3, 4], 16, 64)
    sessions = [
        ShardSession.open(store, fuse(store, manifest, blob, start, stop)[0], context=64)
        for start, stop in ((0, 7), (7, 20), (20, 32))
    ]
    values: NDArray[np.generic] = np.array([[1, 2, 3, 4]], np.int64)
    tokens: list[int] = []
    position = 0
    for _ in range(16):
        length = values.shape[1]
        for session in sessions:
            values = session.run(0, [position], values)
        position += length
        tokens.append(int(np.asarray(values)[0].argmax()))
        values = np.array([[tokens[-1]]], np.int64)
    assert tokens == whole

"""Three stages as real processes: prompts that start alike are computed once."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.parameters import Options, derived_seed
from edgeshard.runtime.sampler import draw
from edgeshard.runtime.wire import Sampling
from edgeshard.runtime.wishes import Wishes
from edgeshard.schemas.common import Precision, changed
from edgeshard.schemas.targets import CPU
from support.runtime_chain import connect, plan_of
from support.runtime_double import byte_tokenizer
from support.tiny_llama import CompiledModel, folder

pytestmark = pytest.mark.timeout(90)
CUTS = (2, 3)
SYSTEM = "You answer in one word, and you never say more than that. "
NUM_TOKENS = 12
CHUNK_TOKENS = 21  # odd, so that it has to be cut at even positions all the same
LIMIT_SECONDS = 10.0
PLAIN: Options = {"max_tokens": NUM_TOKENS, "ignore_eos": True}


def _compile(precision: Precision, store: Store) -> CompiledModel:
    made = compile_model(folder("grouped"), store, precision=precision)
    tokenizer = store.put(byte_tokenizer().to_str().encode(), ".json")
    manifest = changed(made.manifest, tokenizer=tokenizer)
    return CompiledModel(store, manifest, store.put_model(manifest))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("prefix"), 3, threads=1, metrics=True) as found:
        yield found


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def model(
    request: pytest.FixtureRequest,
    cluster: LocalCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> CompiledModel:
    return _compile(request.param, Store(tmp_path_factory.mktemp("store")))


@pytest.fixture
def client(model: CompiledModel, cluster: LocalCluster) -> Iterator[Client]:
    """A chain that has computed nothing yet."""
    plan = plan_of(model.blob.digest, cluster.names, [CPU] * 3, 128)
    edges = (0, *CUTS, len(model.manifest.units))
    stages = tuple(
        changed(stage, start=start, stop=stop)
        for stage, start, stop in zip(plan.stages, edges[:-1], edges[1:], strict=True)
    )
    deploy(
        model.store,
        model.manifest,
        model.blob,
        changed(plan, stages=stages, slots=3),
        cluster.cluster,
        cluster.keys,
        fuse,
        chunk_tokens=CHUNK_TOKENS,
    )
    with connect(cluster) as client:
        yield client


def alone(model: CompiledModel, prompt: str, sampling: Sampling | None = None) -> list[int]:
    """The tokens of a prompt by itself, in one step and in one process."""
    wishes, found = Wishes(sampling or Sampling()), list[int]()
    with model.chain(*CUTS) as chain:
        position, tokens = 0, list(prompt.encode())
        for _ in range(NUM_TOKENS):
            logits = chain.step(position, tokens)
            position += len(tokens)
            tokens = [draw(logits[0], 0, wishes, position).token or 0]
            found += tokens
    return found


def computed(cluster: LocalCluster, expected: int) -> None:
    """Every stage has computed so many positions; figures come once a second."""
    deadline, pause = time.monotonic() + LIMIT_SECONDS, threading.Event()
    for place in cluster.metrics_places:
        while (found := _positions(place)) != expected:
            assert time.monotonic() < deadline, (found, expected)
            pause.wait(0.05)


def _positions(place: str) -> float | None:
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    name = "edgeshard_stage_positions_total"
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return next((float(one.value) for one in samples if one.name == name), None)


def test_a_prompt_is_copied_from_a_slot_that_is_free(
    model: CompiledModel, cluster: LocalCluster, client: Client
) -> None:
    prompts = [f"{SYSTEM}{question}" for question in ("Colour?", "A river in France?")]
    results = [client.generate(prompt, raw=True, **PLAIN).finish() for prompt in prompts]
    for prompt, result in zip(prompts, results, strict=True):
        assert list(result.token_ids) == alone(model, prompt)
    assert [one.kept_tokens for one in results] == [0, len(SYSTEM)]
    fresh = len(prompts[0]) + len(prompts[1]) - len(SYSTEM)
    computed(cluster, fresh + 2 * (NUM_TOKENS - 1))


def test_prompts_that_come_together_compute_their_start_once(
    model: CompiledModel, cluster: LocalCluster, client: Client
) -> None:
    prompts = [f"{SYSTEM}{question}" for question in ("Colour?", "A river?", "Whose book is it?")]
    running = [client.generate(prompt, raw=True, **PLAIN) for prompt in prompts]
    results = [generation.finish() for generation in running]
    for prompt, result in zip(prompts, results, strict=True):
        assert list(result.token_ids) == alone(model, prompt)
    kept = sum(one.kept_tokens for one in results)
    assert kept >= 2 * len(SYSTEM)
    computed(cluster, sum(map(len, prompts)) - kept + 3 * (NUM_TOKENS - 1))


def test_several_answers_compute_their_prompt_once(
    model: CompiledModel, cluster: LocalCluster, client: Client
) -> None:
    prompt = f"{SYSTEM}Colours?"
    options: Options = {**PLAIN, "n": 3, "temperature": 1.0, "seed": 5}
    with client.generate(prompt, raw=True, **options) as generation:
        generation.finish()
    for number, result in enumerate(generation.results):
        sampling = Sampling(1.0, seed=derived_seed(5, number))
        assert list(result.token_ids) == alone(model, prompt, sampling)
    assert len({result.token_ids for result in generation.results}) == 3
    written = 3 * (CHUNK_TOKENS - 1)  # when the others come; more is not worth waiting for
    assert [result.kept_tokens for result in generation.results] == [0, written, written]
    fresh = len(prompt) + 2 * (len(prompt) - written)
    computed(cluster, fresh + 3 * (NUM_TOKENS - 1))


def test_an_answer_is_computed_again_in_the_next_turn_unless_asked_for(
    model: CompiledModel, client: Client
) -> None:
    first = f"{SYSTEM}Colour?"
    options: Options = {**PLAIN, "logit_bias": {ord("y"): 100.0}}
    answer = client.generate(first, raw=True, **options).finish()
    assert answer.text == "y" * NUM_TOKENS
    turn = f"{first}{answer.text} And why?"
    again = client.generate(turn, raw=True, **PLAIN).finish()
    assert list(again.token_ids) == alone(model, turn)
    assert (again.kept_tokens, again.reused_tokens) == (_even(len(first)), 0)
    other = f"{SYSTEM}River?"
    answer = client.generate(other, raw=True, **options).finish()
    turn = f"{other}{answer.text} And why?"
    reusing: Options = {**PLAIN, "reuse_answers": True}
    reused = client.generate(turn, raw=True, **reusing).finish()
    assert reused.kept_tokens == _even(len(other) + NUM_TOKENS - 1)
    assert reused.reused_tokens == reused.kept_tokens - len(other)


def _even(length: int) -> int:
    return length - length % 2

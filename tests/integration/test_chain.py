"""Three agents, three workers and a coordinator as real processes, with the double as model."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeshard.chain_bench import traced_steps
from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime.agent_client import AgentClient
from edgeshard.runtime.channel import Network
from edgeshard.runtime.client import AsyncClient, Client
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.parameters import derived_seed
from edgeshard.runtime.survey import survey
from edgeshard.runtime.token_times import breakdown, token_times
from edgeshard.runtime.wire import Sampling
from support.runtime_chain import connect, deploy_double, local_cluster, status
from support.runtime_double import CONTEXT, END, VOCAB, expected

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with local_cluster(tmp_path_factory.mktemp("chain")) as cluster:
            deploy_double(cluster)
            yield cluster


@pytest.fixture
def client(chain: LocalCluster) -> Iterator[Client]:
    with connect(chain) as client:
        yield client


def test_tokens_are_those_of_one_process(client: Client) -> None:
    result = client.generate("hello", raw=True, max_tokens=40, ignore_eos=True).finish()
    assert list(result.token_ids) == expected(b"hello", 40)
    assert (result.finish_reason, result.prompt_tokens) == ("length", 5)
    assert len(result.token_seconds) == 39
    assert result.first_token_seconds > 0
    assert 0 < result.compute_seconds < sum(result.token_seconds)


def test_a_seed_gives_the_same_text_in_any_company(client: Client) -> None:
    options = {"raw": True, "max_tokens": 30, "temperature": 1.0, "seed": 5}
    alone = client.generate("hello", **options).finish()  # type: ignore[arg-type]
    with client.generate("other", raw=True, max_tokens=50) as other:
        next(other)
        together = client.generate("hello", **options).finish()  # type: ignore[arg-type]
        other.finish()
    assert alone.token_ids == together.token_ids
    assert list(alone.token_ids) == expected(b"hello", 30, Sampling(1.0, 0, 1.0, 5))


def test_penalties_and_biases_change_the_answer_as_in_one_process(client: Client) -> None:
    biases = {7: 3.9, 200: -1.0}
    result = client.generate(
        *("hello",),
        raw=True,
        max_tokens=30,
        ignore_eos=True,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=biases,
    ).finish()
    sampling = Sampling(repetition=1.3, presence=0.5, frequency=0.25)
    assert list(result.token_ids) == expected(b"hello", 30, sampling, biases)
    assert list(result.token_ids) != expected(b"hello", 30)


def test_a_prompt_of_many_tokens_and_many_biases_reach_the_last_stage(client: Client) -> None:
    prompt = bytes(range(32, 90)).decode()
    biases = {token: token / 10 for token in range(VOCAB)}
    answer = client.generate(
        prompt, raw=True, max_tokens=4, repetition_penalty=9.0, logit_bias=biases, ignore_eos=True
    ).finish()
    sampling = Sampling(repetition=9.0)
    assert list(answer.token_ids) == expected(prompt.encode(), 4, sampling, biases)


def test_log_probabilities_come_with_their_tokens(client: Client) -> None:
    with client.generate("hello", raw=True, max_tokens=5, logprobs=2) as generation:
        tokens = list(generation)
    total = math.log(math.exp(4.0) + math.exp(3.5) + VOCAB - 2)
    for token in tokens:
        assert token.logprob == pytest.approx(4.0 - total)
        assert [one.token for one in token.alternatives] == [
            token.token_id,
            (token.token_id + 1) % 256,
        ]
        assert token.alternatives[1].logprob == pytest.approx(3.5 - total)
    assert generation.result.logprobs == tuple(token.logprob for token in tokens)


def test_each_of_several_answers_is_that_of_a_request_of_its_own(client: Client) -> None:
    options = {"raw": True, "max_tokens": 20, "temperature": 1.0, "seed": 5}
    with client.generate("hello", n=3, **options) as generation:  # type: ignore[arg-type]
        generation.finish()
    results = generation.results
    assert [one.seed for one in results] == [derived_seed(5, number) for number in range(3)]
    for result in results:
        sampling = Sampling(1.0, 0, 1.0, result.seed)
        assert list(result.token_ids) == expected(b"hello", 20, sampling)
    assert len({result.token_ids for result in results}) == 3


def test_a_seed_that_was_drawn_gives_the_answer_again(client: Client) -> None:
    first = client.generate("hello", raw=True, max_tokens=20, temperature=1.0).finish()
    again = client.generate("hello", raw=True, max_tokens=20, temperature=1.0, seed=first.seed)
    assert again.finish().token_ids == first.token_ids


def test_a_bias_beyond_the_vocabulary_is_refused_by_the_coordinator(client: Client) -> None:
    generation = client.generate("hello", raw=True, logit_bias={VOCAB: 1.0})
    with pytest.raises(
        InputError, match=f"logit_bias has token {VOCAB}; give ids .* below {VOCAB}"
    ):
        generation.finish()


def test_many_at_once_get_their_own_answers(client: Client) -> None:
    prompts = [f"prompt {number}" for number in range(6)]  # three times as many as slots
    running = [client.generate(prompt, raw=True, max_tokens=20) for prompt in prompts]
    for prompt, generation in zip(prompts, running, strict=True):
        assert list(generation.finish().token_ids) == expected(prompt.encode(), 20)


def test_a_prompt_that_starts_like_an_earlier_one_is_computed_from_there(client: Client) -> None:
    start = "the very same words at the start of both"
    client.generate(f"{start}, one", raw=True, max_tokens=5).finish()
    result = client.generate(f"{start}, two", raw=True, max_tokens=20).finish()
    assert result.kept_tokens == len(f"{start}, ")
    assert list(result.token_ids) == expected(f"{start}, two".encode(), 20)


def test_a_traced_answer_is_the_same_and_its_parts_add_up(client: Client) -> None:
    result = client.generate("hello", raw=True, max_tokens=9, trace=True).finish()
    assert list(result.token_ids) == expected(b"hello", 9)
    assert result.trace is not None
    assert [clock.device for clock in result.trace.clocks] == ["device-0", "device-1", "device-2"]
    prompt, *tokens = token_times(result.trace)
    assert (prompt.num_tokens, prompt.is_decode) == (5, False)
    assert len(tokens) == 8
    total = result.trace.steps[-1].returned - result.trace.steps[0].returned
    assert sum(part.seconds for step in tokens for part in step.parts) == pytest.approx(total)
    compute = sum(p.seconds for step in tokens for p in step.parts if p.kind == "compute")
    assert compute == pytest.approx(result.compute_seconds)


def test_the_breakdown_of_a_chain_has_each_stage_and_hop_and_all_of_the_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeshard.chain_bench.PROMPT", "hello")
    shares = breakdown([step for _ in range(2) for step in traced_steps(client, 5)])
    assert sum(share.share for share in shares) == pytest.approx(1)
    found = {(share.where, share.kind) for share in shares}
    assert {(f"device-{i}", "compute") for i in range(3)} <= found
    assert {("device-0 -> device-1", "hop"), ("device-1 -> device-2", "wait")} <= found


def test_an_answer_that_is_not_traced_has_no_trace(client: Client) -> None:
    assert client.generate("hello", raw=True, max_tokens=3).finish().trace is None


def test_an_event_loop_runs_many_at_once(chain: LocalCluster) -> None:
    async def ask() -> list[list[int]]:
        async with AsyncClient.connect(chain.cluster_path, chain.key_path) as client:
            prompts = ["one", "two", "three"]
            asked = [client.generate(prompt, raw=True, max_tokens=20) for prompt in prompts]
            results = await asyncio.gather(*(generation.finish() for generation in asked))
            return [list(result.token_ids) for result in results]

    assert asyncio.run(ask()) == [expected(p, 20) for p in (b"one", b"two", b"three")]


def test_the_chat_template_is_applied(client: Client) -> None:
    result = client.generate("hi", max_tokens=5).finish()
    assert list(result.token_ids) == expected(b"hi?", 5)
    messages = [{"role": "user", "content": "h"}, {"role": "user", "content": "i"}]
    assert client.generate(messages=messages, max_tokens=5).finish().token_ids == result.token_ids


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: Client) -> None:
    tokens = expected(b"hello", 30)
    text = bytes(tokens).decode(errors="replace")
    place = next(
        i for i in range(4, 30) if chr(tokens[i]).isascii() and tokens[i] not in tokens[:i]
    )
    stop = chr(tokens[place])
    result = client.generate("hello", raw=True, max_tokens=30, stop=[stop]).finish()
    assert result.finish_reason == "stop"
    assert result.text == text[: text.index(stop)]
    assert len(result.token_ids) == place + 1


def test_a_prompt_longer_than_the_context_is_refused(client: Client) -> None:
    generation = client.generate("x" * (CONTEXT + 1), raw=True)
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens, the context holds {CONTEXT}"):
        generation.finish()


def test_a_full_context_ends_with_length(client: Client) -> None:
    result = client.generate("x" * (CONTEXT - 2), raw=True, ignore_eos=True).finish()
    assert (len(result.token_ids), result.finish_reason) == (3, "length")
    assert list(result.token_ids) == expected(b"x" * (CONTEXT - 2), 3)


def test_a_token_beyond_the_vocabulary_never_reaches_a_kernel(client: Client) -> None:
    assert END not in client.generate("x", raw=True, max_tokens=50).finish().token_ids


def test_cancel_frees_the_slots_on_every_stage(chain: LocalCluster, client: Client) -> None:
    running = [client.generate("a" * n, raw=True, max_tokens=60) for n in (1, 2)]
    for generation in running:
        next(generation)
        generation.cancel()
    for generation in running:
        assert generation.finish().finish_reason in ("cancelled", "length")
    assert client.generate("after", raw=True, max_tokens=3).finish().finish_reason == "length"
    for index in range(3):
        assert status(chain, index).stage is not None
        for _ in range(50):
            stage = status(chain, index).stage
            if stage is not None and stage.open_slots == 0:
                break
        assert stage is not None
        assert stage.open_slots == 0


def test_leaving_early_cancels(client: Client) -> None:
    with client.generate("leaving", raw=True, max_tokens=50) as generation:
        next(generation)
    assert client.generate("after", raw=True, max_tokens=3).finish().finish_reason == "length"


def test_one_who_may_generate_may_not_command(chain: LocalCluster) -> None:
    from edgeshard.runtime.keys import load_keys

    source = load_keys(chain.folder / "keys" / "device-0.secret")
    with (
        Network(source) as network,
        AgentClient(network, chain.cluster.devices[1]) as agent,
        pytest.raises(DeviceError, match="operators only"),
    ):
        agent.stop()


def test_a_survey_shows_every_stage(chain: LocalCluster) -> None:
    found = survey(chain.cluster, chain.keys)
    assert [one.status is not None for one in found] == [True] * 3
    stages = [one.status.stage for one in found if one.status is not None]
    assert [(s.start, s.stop, s.state) for s in stages if s is not None] == [
        (0, 2, "ready"),
        (2, 4, "ready"),
        (4, 6, "ready"),
    ]
    assert found[0].status is not None
    assert found[0].status.coordinator == "ready"
    assert found[0].status.onnxruntime


def test_profile_and_links_need_an_idle_device(chain: LocalCluster) -> None:
    with (
        Network(chain.keys) as network,
        AgentClient(network, chain.cluster.devices[1]) as agent,
    ):
        with pytest.raises(DeviceError, match="stop it first"):
            agent.profile(b"{}", 10.0)
        with pytest.raises(DeviceError, match="stop it first"):
            agent.open_echo("device-0")


def test_a_second_deploy_sends_nothing_and_serves_again(chain: LocalCluster) -> None:
    deployment = deploy_double(chain)
    assert deployment.sent_bytes == 0
    assert deployment.present_bytes > 0
    with connect(chain) as client:
        assert list(client.generate("new", raw=True, max_tokens=9).finish().token_ids) == expected(
            b"new", 9
        )


def test_a_deploy_deletes_what_dead_processes_left(chain: LocalCluster) -> None:
    left = chain.store_path("device-1") / "incoming" / "left"
    left.mkdir()
    os.utime(left, (0, 0))

    deploy_double(chain)

    assert not left.exists()


def test_a_prompt_goes_in_chunks_of_the_size_that_was_deployed(chain: LocalCluster) -> None:
    deploy_double(chain, chunk_tokens=4)
    with connect(chain) as client:
        result = client.generate("chunks of four!", raw=True, max_tokens=5, trace=True).finish()
    assert list(result.token_ids) == expected(b"chunks of four!", 5)
    assert result.trace is not None
    steps = [step for step in token_times(result.trace) if not step.is_decode]
    assert [step.num_tokens for step in steps] == [4, 4, 4, 3]


def test_chunks_that_could_leave_a_single_token_and_negative_rests_are_refused(
    chain: LocalCluster,
) -> None:
    with pytest.raises(InputError, match="chunk_tokens is 2, at least 3"):
        deploy_double(chain, chunk_tokens=2)
    with pytest.raises(InputError, match="beside_steps is -1, at least 0"):
        deploy_double(chain, beside_steps=-1)


def test_idle_devices_profile_and_measure_their_links(chain: LocalCluster) -> None:
    devices = chain.cluster.devices
    said: list[str] = []
    with (
        Network(chain.keys) as network,
        AgentClient(network, devices[1]) as sender,
        AgentClient(network, devices[2]) as receiver,
    ):
        for agent in (sender, receiver):
            agent.stop()
        result = json.loads(sender.profile(b'{"units": 3}', 20.0, said.append))
        assert (result["spec"], said) == ({"units": 3}, ["measuring"])
        with pytest.raises(DeviceError, match="fell over"):
            sender.profile(b'{"fail": true}', 20.0)
        link = sender.measure_link(receiver, frame_bytes=4096, num_samples=50)
        assert (link.source, link.target) == ("device-1", "device-2")
        assert 0 < link.latency_seconds < 0.1
        assert link.bytes_per_second > 1e6
        assert link.time.num_samples == 50

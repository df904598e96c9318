"""Agents on loopback with the double deployed on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from edgeshard.artifacts.store import Store
from edgeshard.runtime import control
from edgeshard.runtime.agent_client import AgentClient
from edgeshard.runtime.channel import Network
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import Deployment, deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.schemas.common import Activation, changed
from edgeshard.schemas.plan import MemoryUse, Plan, Stage
from support.runtime_double import CONTEXT, SLOTS, UNITS, fuse_double, put_model


def local_cluster(folder: Path, **options: object) -> LocalCluster:
    return LocalCluster(
        folder,
        worker="support.runtime_worker",
        profiler="support.runtime_profiler",
        **options,  # type: ignore[arg-type]
    )


def plan_of(model: str, names: Sequence[str], providers: Sequence[str], context: int) -> Plan:
    per_stage = UNITS // len(names)
    memory = MemoryUse(
        baseline_bytes=1, weights_bytes=1, kv_bytes=1, workspace_bytes=1, limit_bytes=2**30
    )
    return Plan(
        model=model,
        objective="latency",
        source="device-0",
        context=context,
        slots=SLOTS,
        prompt_tokens=8,
        stages=tuple(
            Stage(
                device=name,
                provider=provider,
                start=index * per_stage,
                stop=(index + 1) * per_stage,
                decode_seconds=0,
                prefill_seconds=0,
                hop_seconds=0,
                memory=memory,
            )
            for index, (name, provider) in enumerate(zip(names, providers, strict=True))
        ),
        token_seconds=0,
        first_token_seconds=0,
        tokens_per_second=0,
        bottleneck="none",
        one_device=(),
        left_out=(),
    )


def deploy_double(
    cluster: LocalCluster,
    provider: str | Sequence[str] = "double",
    *,
    context: int = CONTEXT,
    silence_seconds: float = 30.0,
    activation: Activation = "fp32",
    chunk_tokens: int = 512,
    beside_steps: int = 0,
) -> Deployment:
    store = Store(cluster.folder / "operator-store")
    manifest, model = put_model(store)
    names = cluster.names
    providers = [provider] * len(names) if isinstance(provider, str) else provider
    plan = changed(plan_of(model.digest, names, providers, context), activation=activation)
    return deploy(
        store,
        manifest,
        model,
        plan,
        cluster.cluster,
        cluster.keys,
        fuse_double,
        silence_seconds=silence_seconds,
        chunk_tokens=chunk_tokens,
        beside_steps=beside_steps,
    )


def connect(cluster: LocalCluster) -> Client:
    return Client.connect(cluster.cluster, cluster.keys)


def status(cluster: LocalCluster, index: int) -> control.AgentStatus:
    with (
        Network(cluster.keys) as network,
        AgentClient(network, cluster.cluster.devices[index]) as agent,
    ):
        return agent.status()


def family(cluster: LocalCluster) -> list[psutil.Process]:
    """Every process of the cluster."""
    agents = [psutil.Process(agent.pid) for agent in cluster.agents]
    return [*agents, *(child for agent in agents for child in agent.children(recursive=True))]

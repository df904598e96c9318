"""Profiles a cluster: every agent measures units, one after the other, then every link.

Devices take turns, so that those which share a machine do not slow each other down. Only graphs are
sent, and the weights of the units that are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgeshard.artifacts.store import Store
from edgeshard.runtime.agent_client import AgentClient
from edgeshard.runtime.channel import KeyPair, Network
from edgeshard.runtime.profiler import ProfileSpec
from edgeshard.schemas.cluster import Cluster, Device
from edgeshard.schemas.common import Blob, changed
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import DeviceProfile, LinkProfile, Profile

LIMIT_SECONDS = 3600.0
HEADER_BYTES = 200
OnProgress = Callable[[str], None]


def profile_cluster(
    store: Store,
    model: ModelManifest,
    model_blob: Blob,
    cluster: Cluster,
    keys: KeyPair,
    *,
    others: Sequence[tuple[ModelManifest, Blob]] = (),
    all_units: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> Profile:
    """Measure every device and every link of a cluster.

    Args:
        store: holds the model.
        model: what the devices are to run.
        model_blob: its manifest.
        cluster: the devices.
        keys: of an operator.
        others: more models to measure on every device; the links are measured for the first one.
        all_units: measure every block with its own weights instead of one in the middle.
        on_progress: told what happens.

    Raises:
        LinkError: a device does not answer.
        DeviceError: a device is busy or cannot run the graphs.
    """
    models = ((model, model_blob), *others)
    specs = [(one, profile_spec(one, blob, all_units)) for one, blob in models]
    with Network(keys) as network:
        devices = [
            _joined(
                [
                    _profile_device(network, device, store, one, spec, on_progress)
                    for one, spec in specs
                ]
            )
            for device in cluster.devices
        ]
        links = _profile_links(network, cluster, model, on_progress)
    digests = tuple(blob.digest for _, blob in models)
    return Profile(models=digests, devices=tuple(devices), links=tuple(links))


def profile_spec(model: ModelManifest, model_blob: Blob, all_units: bool) -> ProfileSpec:
    """What to measure: one unit for each structure, and which real units to compare with it."""
    first: dict[str, int] = {}
    for target in model.targets:
        for index, unit in enumerate(model.view(target).units):
            first.setdefault(unit.structure, index)
    blocks = [unit.name for unit in model.units if unit.kind == "block"]
    return ProfileSpec(
        model=model_blob,
        representatives=tuple(dict.fromkeys(first.values())),
        sampled=tuple(blocks) if all_units else (blocks[len(blocks) // 2],),
    )


def _joined(measured: Sequence[DeviceProfile]) -> DeviceProfile:
    """One device measured for several models; what no unit has of its own counts at its highest."""
    return changed(
        measured[0],
        units=tuple(unit for one in measured for unit in one.units),
        memory_bytes=min(one.memory_bytes for one in measured),
        baseline_bytes=max(one.baseline_bytes for one in measured),
        workspace_bytes=max(one.workspace_bytes for one in measured),
        step_overhead_seconds=max(one.step_overhead_seconds for one in measured),
    )


def _profile_device(
    network: Network,
    device: Device,
    store: Store,
    model: ModelManifest,
    spec: ProfileSpec,
    on_progress: OnProgress,
) -> DeviceProfile:
    blobs = [spec.model]
    for view in (model.view(target) for target in model.targets):
        blobs += [view.units[index].graph for index in spec.representatives]
        for unit in view.units:
            if unit.name in spec.sampled:
                blobs += [unit.graph, *unit.weights]
    with AgentClient(network, device) as agent:
        sent, _ = agent.send_blobs(store, blobs)
        on_progress(f"{device.name}: {sent / 1e6:.1f} MB of graphs and samples sent")
        data = agent.profile(
            msgspec.json.encode(spec),
            LIMIT_SECONDS,
            lambda text: on_progress(f"{device.name}: measuring {text}"),
        )
    return msgspec.json.decode(data, type=DeviceProfile)


def _profile_links(
    network: Network, cluster: Cluster, model: ModelManifest, on_progress: OnProgress
) -> list[LinkProfile]:
    frame_bytes = model.hidden_size * 4 + HEADER_BYTES
    links = []
    for sender in cluster.devices:
        for receiver in cluster.devices:
            if sender.name == receiver.name:
                continue
            with AgentClient(network, sender) as a, AgentClient(network, receiver) as b:
                link = a.measure_link(b, frame_bytes=frame_bytes)
            on_progress(
                f"{link.source} → {link.target}: {link.latency_seconds * 1e6:.0f} µs, "
                f"{link.bytes_per_second * 8 / 1e6:.0f} Mbit/s"
            )
            links.append(link)
    return links

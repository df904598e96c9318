"""`esc stop`: end what runs on the devices; their agents stay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stop(
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of an operator.")],
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests may take to finish.")
    ] = 10.0,
) -> None:
    """Stop every stage and the coordinator, so that devices can be profiled or deployed anew.

    The source is asked first: its coordinator lets running requests finish and takes no new ones.
    """
    from edgeshard.runtime.agent_client import AgentClient
    from edgeshard.runtime.channel import Network
    from edgeshard.runtime.keys import load_keys
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster

    read = files.read(cluster, Cluster)
    devices = sorted(read.devices, key=lambda device: device.name != read.source)
    with Network(load_keys(key)) as network:
        for device in devices:
            with AgentClient(network, device) as agent:
                agent.stop(drain if device.name == read.source else 0.0)
            typer.echo(f"{device.name}: stopped")

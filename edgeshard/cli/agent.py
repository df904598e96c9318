"""`esc agent`: the daemon on a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def agent(
    cluster: Annotated[Path, typer.Option(help="The cluster file; the same on every device.")],
    name: Annotated[str, typer.Option(help="Which of its devices this machine is.")],
    key: Annotated[Path, typer.Option(help="Secret key file of the device (NAME.secret).")],
    store: Annotated[Path, typer.Option(help="Folder for the blobs that this device gets.")],
    bind: Annotated[
        str | None,
        typer.Option(help="Address to listen at, where it is not the one in the cluster file."),
    ] = None,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that requests may take to finish on SIGTERM.")
    ] = 10.0,
    metrics: Annotated[
        str | None, typer.Option(help="Serve Prometheus metrics at this ADDRESS:PORT.")
    ] = None,
    metrics_beyond_loopback: Annotated[
        bool,
        typer.Option(
            "--metrics-beyond-loopback",
            help="Let that be an address that others reach: no key, no encryption.",
        ),
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON lines, as EDGESHARD_LOG=json does.")
    ] = False,
) -> None:
    """Run the agent of this device until SIGTERM or Ctrl-C.

    Operators in the cluster file may then profile this device and deploy to it. The first SIGTERM
    lets running requests finish, the second stops at once; no process is left behind.
    """
    from edgeshard.runtime import log
    from edgeshard.runtime.agent import AgentConfig, run_agent

    if log_json:
        os.environ[log.VARIABLE] = log.JSON  # the children's as well

    config = AgentConfig(
        cluster=str(cluster),
        name=name,
        key=str(key),
        store=str(store),
        bind_address=bind,
        drain_seconds=drain,
        metrics=metrics,
        metrics_beyond_loopback=metrics_beyond_loopback,
    )
    run_agent(config, lambda: typer.echo(f"{name} is ready; Ctrl-C stops it"))

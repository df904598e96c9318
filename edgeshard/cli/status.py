"""`esc status`: what every device is and runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def status(
    cluster: Annotated[Path, typer.Option(help="The cluster file.")],
    key: Annotated[Path, typer.Option(help="Secret key file of an operator.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every device: its stage, memory, providers, or why it does not answer.

    Exit status 0 where every device answers and no stage has failed, 5 or 6 otherwise.
    """
    import msgspec
    from rich.console import Console

    from edgeshard.errors import DeviceError, LinkError
    from edgeshard.runtime.keys import load_keys
    from edgeshard.runtime.survey import is_failed, survey, survey_table
    from edgeshard.schemas import files
    from edgeshard.schemas.cluster import Cluster

    found = survey(files.read(cluster, Cluster), load_keys(key))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        Console(file=sys.stdout).print(survey_table(found))
        for device in found:
            if device.error:
                typer.echo(f"{device.name}: {device.error}")
    if any(device.status is None for device in found):
        raise typer.Exit(LinkError.exit_code)
    if any(is_failed(device) for device in found):
        raise typer.Exit(DeviceError.exit_code)

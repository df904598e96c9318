"""`esc keys`: make a key pair for a device or a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def keys(
    name: Annotated[str, typer.Argument(help="Device or person that the keys are for.")],
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the two files, readable by you alone.")
    ] = Path("keys"),
) -> None:
    """Make a key pair: NAME.secret stays on this machine, NAME.public goes into cluster.toml.

    Prints the public key. Existing keys are never overwritten.
    """
    from edgeshard.runtime.keys import make_keys

    typer.echo(make_keys(folder, name).public)

"""The `esc` command: a module for each sub-command; it parses, the packages act.

An error that we raise on purpose is one line on standard error and the exit code of its family (see
`edgeshard.errors`); Ctrl-C is 130.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgeshard import __version__
from edgeshard.cli.agent import agent
from edgeshard.cli.bench import bench
from edgeshard.cli.compile import compile_command
from edgeshard.cli.demo import demo
from edgeshard.cli.deploy import deploy
from edgeshard.cli.generate import generate
from edgeshard.cli.keys import keys
from edgeshard.cli.plan import plan
from edgeshard.cli.profile import profile
from edgeshard.cli.reproduce import reproduce_paper
from edgeshard.cli.simulate import simulate
from edgeshard.cli.status import status
from edgeshard.cli.stop import stop
from edgeshard.cli.trace import trace
from edgeshard.cli.verify import verify
from edgeshard.errors import EdgeShardError
from edgeshard.runtime.wire import MAJOR, MINOR

app = typer.Typer(
    help="Compile a language model into ONNX shards and run it over the devices you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"edgeshard {__version__}, protocol {MAJOR}.{MINOR}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_say_version,
            is_eager=True,
            help="Print the version, and that of the protocol: devices of a chain need the same.",
        ),
    ] = False,
) -> None:
    pass  # the option acts by itself; the help is the app's


app.command("compile")(compile_command)
app.command()(keys)
app.command()(agent)
app.command()(profile)
app.command()(plan)
app.command()(simulate)
app.command()(deploy)
app.command()(generate)
app.command()(trace)
app.command()(status)
app.command()(stop)
app.command()(verify)
app.command()(bench)
app.command()(demo)
app.command()(reproduce_paper)


def main() -> None:
    """Run `esc`; never returns."""
    # No progress bar, table or tokenizer of ours needs the hub or forks.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except EdgeShardError as error:
        sys.stdout.flush()
        print(f"esc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("esc: interrupted", file=sys.stderr)
        sys.exit(130)

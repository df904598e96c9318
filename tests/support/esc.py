"""Runs `esc` as a person does, its exit code and its two streams: in a process, or in this one."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from edgeshard.cli import main

LIMIT_SECONDS = 120
WIDE = {"COLUMNS": "200"}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that an error may have."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("esc: ")
        return lines[0]


def esc(*words: str | Path, folder: Path | None = None) -> Outcome:
    """Run a command and wait for it."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgeshard", *map(str, words)],
        cwd=folder,
        env={**os.environ, **WIDE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def esc_here(*words: str | Path, folder: Path) -> Outcome:
    """The same in this process, which has imported already what a command is slow to import."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(gc, "freeze"),  # what a process of its own does at its end
        mock.patch.object(sys, "argv", ["esc", *map(str, words)]),
        mock.patch.dict(os.environ, WIDE),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as done:
            code = done.code
    return Outcome(int(code or 0), out.getvalue(), err.getvalue())

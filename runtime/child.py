r"""Processes that an agent starts: how it speaks to them and how they end with it.

    parent                              child: python -P -m MODULE
      stdin  ── config\n ── lines … ──►  the pipe's end means that the parent is gone: exit
      stdout ◄── one JSON `Line` each ─  ready, progress, result, error
      stderr                             the parent's own

Rule: no child outlives its parent. The pipe closes however the parent dies, on every system and
whichever thread started the child (Linux's parent-death signal fires when that *thread* ends).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

from edgeshard.errors import EdgeShardError
from edgeshard.runtime.control import error_of, kind_of
from edgeshard.runtime.figures import Figures
from edgeshard.system import NEW_GROUP, computing_environment

MAX_LINE_BYTES = 16 * 2**20
T = TypeVar("T")


class Ready(msgspec.Struct, frozen=True):
    """The child serves now."""

    resident_bytes: int = 0
    load_seconds: float = 0.0
    trace_seconds: float = 0.0


class ErrorText(msgspec.Struct, frozen=True):
    """Why the child ends: an error's class name and text."""

    kind: str
    message: str


class Line(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One thing that parent or child says; exactly one field is set.

    Attributes:
        result: what a job was for.
        blocked: why the stage cannot go on, "" once it can again.
        drain: parent to child: finish what runs, take nothing new, and why.
        figures: what the child has counted so far.
    """

    progress: str | None = None
    ready: Ready | None = None
    error: ErrorText | str | None = None
    result: dict[str, object] | None = None
    open_slots: int | None = None
    blocked: str | None = None
    drain: str | None = None
    figures: Figures | None = None

    def failure(self) -> EdgeShardError | None:
        """The error in the line, if it is one."""
        if self.error is None:
            return None
        if isinstance(self.error, str):
            return error_of("DeviceError", self.error)
        return error_of(self.error.kind, self.error.message)


class Child:
    """A child process; `on_line` and `on_exit` are called from a thread of its own."""

    def __init__(
        self,
        module: str,
        config: bytes,
        on_line: Callable[[Line], None],
        on_exit: Callable[[int], None],
        *,
        stderr: int | None = None,
        python: str = sys.executable,
    ) -> None:
        """Start `python -m module` and give it its config, one line of JSON.

        Args:
            module: to run.
            config: JSON.
            on_line: called for each line that it says.
            on_exit: called with its status once it is gone.
            stderr: file descriptor for its errors; None: our own.
            python: interpreter, that of another environment where it is not ours.
        """
        self._on_line = on_line
        self._on_exit = on_exit
        self._process = subprocess.Popen(
            [python, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=computing_environment(),
            start_new_session=True,  # a terminal's Ctrl-C reaches the agent alone
            creationflags=NEW_GROUP,
        )
        self._thread = threading.Thread(
            target=self._follow, args=(config,), name=f"child-{self.pid}", daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, line: Line) -> None:
        """Say something to the child."""
        self._write(msgspec.json.encode(line) + b"\n")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def stop(self, limit_seconds: float) -> None:
        """Ask it to end, kill it after `limit_seconds`, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join(limit_seconds)

    def end_input(self, limit_seconds: float) -> None:
        """Close its input, which ends it, and `stop` it after `limit_seconds`."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_seconds)
        self.stop(limit_seconds)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it ended; on_exit says so
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _follow(self, config: bytes) -> None:
        self._write(config.replace(b"\n", b" ") + b"\n")
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while text := output.readline(MAX_LINE_BYTES):
                with contextlib.suppress(msgspec.MsgspecError):  # a library's print is no line
                    self._on_line(msgspec.json.decode(text, type=Line))
        code = self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._on_exit(code)


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Parent:
    """The child's side: its config, its mouth, and an ear for the parent's end."""

    def __init__(self) -> None:
        """Take over standard output, so that what a library prints cannot be taken for a line."""
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._rest = b""
        self._lock = threading.Lock()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def config(self, kind: type[T]) -> T:
        """Read the config.

        Raises:
            ValueError: the parent closed the pipe first, or it is no such config.
        """
        line = self._read_line()
        if line is None:
            raise ValueError("the parent gave no config")
        return msgspec.json.decode(line, type=kind)

    def follow(self, on_line: Callable[[Line], None], on_end: Callable[[], None]) -> None:
        """Call back, from a thread, for each further line and for the parent's end."""
        threading.Thread(target=self._follow, args=(on_line, on_end), daemon=True).start()

    def tell(self, line: Line) -> None:
        """Say something to the parent; it may be gone, which `follow` notices."""
        data = msgspec.json.encode(line) + b"\n"
        with self._lock, contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._output, data) :]

    def fail(self, error: EdgeShardError) -> None:
        """Say why the child ends."""
        self.tell(Line(error=ErrorText(kind_of(error), str(error))))

    def _follow(self, on_line: Callable[[Line], None], on_end: Callable[[], None]) -> None:
        while (text := self._read_line()) is not None:
            on_line(msgspec.json.decode(text, type=Line))
        on_end()

    def _read_line(self) -> bytes | None:
        # os.read, not sys.stdin: a thread inside a buffered reader breaks interpreter shutdown.
        while b"\n" not in self._rest:
            data = os.read(0, 65536)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def settle() -> None:
    """Spare what is loaded by now from garbage collection.

    Walking it takes 30 to 50 ms, in which no step goes on and no client is answered.
    """
    gc.collect()
    gc.freeze()


def exit_now() -> None:
    """End this process without waiting for anything; for a parent that is gone."""
    os._exit(1)

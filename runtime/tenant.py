"""A child process that an operator asked an agent for: a stage, the coordinator, a profile run.

    loading ──ready──► ready ◄──► blocked
       └───────────────┴────────────┴──► failed (why)

Rule: whoever asked gets one answer, and an end that nobody asked for is a failure with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeshard.errors import DeviceError, EdgeShardError
from edgeshard.runtime import control, log
from edgeshard.runtime.child import Child, Line, describe_exit
from edgeshard.runtime.control import StageState
from edgeshard.runtime.figures import Figures
from edgeshard.runtime.machine import resident_bytes

Post = Callable[[Callable[[], None]], None]
Role = Literal["stage", "coordinator", "profiler"]


@dataclass(frozen=True)
class Task:
    """A request that waits for its reply."""

    id: int
    send: Callable[[control.Reply, bytes | None], bool]

    def reply(self, reply: control.Reply, payload: bytes | None = None) -> bool:
        """Answer; False where the one who asked is gone."""
        return self.send(reply, payload)

    def refuse(self, error: EdgeShardError) -> None:
        """Answer with an error."""
        self.send(control.Refused(id=self.id, kind=control.kind_of(error), reason=str(error)), None)

    def progress(self, text: str) -> bool:
        """Say what is being done; False where the one who asked is gone."""
        return self.send(control.Progress(id=self.id, text=text), None)


class Tenant:
    """A child process with its state. Everything runs in the agent's loop, by `post`."""

    def __init__(
        self,
        what: str,
        module: str,
        config: bytes,
        *,
        task: Task,
        post: Post,
        answer: Callable[[int, Line], tuple[control.Reply, bytes | None] | None],
        on_change: Callable[[], None] = lambda: None,
        limit_bytes: int | None = None,
        is_job: bool = False,
    ) -> None:
        """Start it.

        Args:
            what: names it in errors.
            module: that the child runs.
            config: JSON that it reads.
            task: whom to answer once it is ready or done.
            post: runs a function in the agent's loop.
            answer: makes the reply of the line that ends the request, None of other lines.
            on_change: called when the state has changed.
            limit_bytes: resident memory beyond which it is killed.
            is_job: it ends by itself; answer only then, so that the device is free again.
        """
        self.what = what
        self.state: StageState = "loading"
        self.reason = ""
        self.resident_bytes = 0
        self.open_slots = 0
        self.figures: Figures | None = None
        self.has_ended = False
        self._is_stopping = False
        self._error: EdgeShardError | None = None
        self._task: Task | None = task
        self._answer = answer
        self._on_change = on_change
        self._limit_bytes = limit_bytes
        self._is_job = is_job
        self._result: tuple[control.Reply, bytes | None] | None = None
        self._child = Child(
            module,
            config,
            lambda line: post(lambda: self._on_line(line)),
            lambda code: post(lambda: self._on_exit(code)),
        )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def tell(self, line: Line) -> None:
        """Say something to the child."""
        self._child.tell(line)

    def stop(self, limit_seconds: float) -> None:
        """End it and wait; for a thread beside the loop."""
        self._is_stopping = True
        self._child.stop(limit_seconds)

    def check_budget(self) -> None:
        """Kill it where it holds more memory than it may."""
        if self._limit_bytes is None or self.has_ended or self._error is not None:
            return
        self.resident_bytes = resident_bytes(self.pid) or self.resident_bytes
        if self.resident_bytes > self._limit_bytes:
            self._error = DeviceError(
                f"{self.what} held {_mib(self.resident_bytes)}, its limit is "
                f"{_mib(self._limit_bytes)} (memory_mib of the device); it was killed: plan again "
                "with fewer slots or a smaller context, or raise the limit"
            )
            self._child.kill()

    def _on_line(self, line: Line) -> None:
        failure = line.failure()
        if failure is not None:
            self._error = self._error or failure
        if line.open_slots is not None:
            self.open_slots = line.open_slots
        if line.figures is not None:
            self.figures = line.figures
        if line.blocked is not None:
            self._become("blocked" if line.blocked else "ready", line.blocked)
        if line.ready is not None:
            self.resident_bytes = line.ready.resident_bytes
            log.note("child.ready", f"{self.what} is ready", child=self.what, child_pid=self.pid)
            self._become("ready", "")
        if self._task is None:
            return
        if line.progress is not None and not self._task.progress(line.progress):
            self._error = self._error or DeviceError(f"{self.what}: whoever asked for it is gone")
            self._child.kill()
        reply = self._answer(self._task.id, line)
        if reply is not None and self._is_job:
            self._result = reply
        elif reply is not None:
            self._task.reply(*reply)
            self._task = None

    def _on_exit(self, code: int) -> None:
        self.has_ended = True
        self.open_slots = 0
        log.note("child.ended", f"{self.what} {describe_exit(code)}", child=self.what, code=code)
        if self._is_stopping:
            error: EdgeShardError = DeviceError(f"{self.what} was stopped by an operator")
        else:
            error = self._error or DeviceError(f"{self.what} {describe_exit(code)}")
            if self._task is None and (code != 0 or self._error is not None):
                log.warn("child.failed", str(error), child=self.what)
        if self._task is not None and self._result is not None and self._error is None:
            self._task.reply(*self._result)
        elif self._task is not None:
            self._task.refuse(error)
        self._task = None
        self._become("failed", str(error))

    def _become(self, state: StageState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change()


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"

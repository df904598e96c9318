"""Whether every stage of a chain is alive, from what its agents say. No socket, no clock.

Each agent is asked once a second, and tells at once when its stage dies. A device that is gone is
noticed sooner, by the connection: libzmq answers for an agent that is busy, but for no dead one.

A stage that is blocked is seldom the cause: for `HINT_SECONDS` the one it cannot send to may show
that it is gone itself.

Rule: a connection that is cut, three seconds of silence, another epoch, or a stage that is not
ready any more is a problem, named with stage and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeshard.runtime.control import StageView
from edgeshard.runtime.link_watch import LOOK_SECONDS, LinkWatch

ASK_SECONDS = 1.0
SILENCE_SECONDS = 3.0
HINT_SECONDS = 0.75  # two signs of one cause come that near to each other


@dataclass
class _Watched:
    device: str
    heard: float
    view: StageView | None = None
    is_draining: bool = False
    has_answered: bool = False
    blocked_since: float | None = None
    link: LinkWatch = field(default_factory=LinkWatch)


class ChainWatch:
    """What was last heard of each stage."""

    def __init__(self, devices: Sequence[str], epoch: int, now: float) -> None:
        self._stages = [_Watched(device, now) for device in devices]
        self._epoch = epoch
        self._turn = now
        self._next_ask = now
        self._next_look = now

    def asks(self, now: float) -> bool:
        """Whether to ask every agent now.

        A pause of ourselves (a suspended machine, a long step) is not held against the agents.
        """
        pause = now - self._turn
        self._turn = now
        if pause > ASK_SECONDS:
            for stage in self._stages:
                stage.heard += pause
        if now < self._next_ask:
            return False
        self._next_ask = now + ASK_SECONDS
        return True

    def looks(self, now: float) -> bool:
        """Whether to see now which agents are connected."""
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        return True

    def saw(self, index: int, is_connected: bool, now: float) -> None:
        """An agent's connection is there, or is not."""
        self._stages[index].link.saw(is_connected, now)

    def heard(self, index: int, view: StageView | None, is_draining: bool, now: float) -> None:
        """An agent answered."""
        stage = self._stages[index]
        stage.heard = max(stage.heard, now)
        stage.view = view
        is_blocked = view is not None and view.state == "blocked"
        stage.blocked_since = (stage.blocked_since or now) if is_blocked else None
        stage.is_draining = is_draining
        stage.has_answered = True

    @property
    def is_ready(self) -> bool:
        """Whether every stage is known to take steps."""
        return (
            all(stage.has_answered and stage.blocked_since is None for stage in self._stages)
            and self._problem_said(0.0) is None
        )

    def problem(self, now: float) -> str | None:
        """Why the chain cannot run, or None."""
        for index, stage in enumerate(self._stages):
            if stage.link.is_cut(now):
                return (
                    f"stage {index} on {stage.device} is lost: the connection to its agent is cut"
                )
            if now - stage.heard > SILENCE_SECONDS:
                return (
                    f"stage {index} on {stage.device} is lost: its agent does not answer for "
                    f"{SILENCE_SECONDS:.0f} s"
                )
        return self._problem_said(now)

    def draining(self) -> str | None:
        """Which device is about to stop, in words."""
        for stage in self._stages:
            if stage.is_draining:
                return f"device {stage.device} is stopping"
        return None

    def _problem_said(self, now: float) -> str | None:
        blocked = ""  # by a stage that may be about to say why
        for index, stage in enumerate(self._stages):
            view = stage.view
            where = f"stage {index} on {stage.device}"
            if not stage.has_answered:
                continue
            if view is None:
                return f"{where} was stopped"
            if view.epoch != self._epoch or view.index != index:
                return f"{where} was deployed anew for another chain"
            if stage.blocked_since is not None:
                if not blocked and now - stage.blocked_since >= HINT_SECONDS:
                    blocked = f"{where} is blocked: {view.reason}"
            elif view.state != "ready":
                return f"{where} is {view.state}: {view.reason}"
        return blocked or None

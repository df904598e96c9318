"""A request of the schedule, from when it may wait to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgeshard.runtime.kept_prompts import Held
from edgeshard.runtime.schedule_events import Submit


@dataclass(eq=False)
class Request:
    """How far a request is.

    Attributes:
        is_open: the stages know of it.
        sent: positions that are on every stage or on their way there, kept ones included.
        next_token: to be sent with its group's next step.
        num_kept: positions that it did not compute.
        exact: where its text ends that prompt chunks alone wrote, were it all sent.
        leader: whose prompt starts as this one's and is being computed; `awaited` positions of it
            are worth waiting for.
        starts_anew: what it was to start from was gone, so that it computes everything.
    """

    ask: Submit
    submitted: float = 0.0
    admitted: float = 0.0
    slot: int = -1
    is_open: bool = False
    sent: int = 0
    answer: list[int] = field(default_factory=list)
    next_token: int | None = None
    num_kept: int = 0
    exact: int = 0
    leader: Request | None = None
    awaited: int = 0
    starts_anew: bool = False

    def __post_init__(self) -> None:
        self.exact = self.num_prompt

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.ask.prompt)

    @property
    def num_reused(self) -> int:
        """Kept positions that a decode step wrote, or that follow one."""
        return max(0, self.num_kept - self.exact)

    def held(self) -> Held:
        """What its slot holds, or will once its prompt is computed."""
        text = (*self.ask.prompt, *self.answer)[: max(self.sent, self.num_prompt)]
        return Held(self.ask.request, self.ask.client, text, self.exact, self.sent)


def neighbours(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Split requests, sorted by slot, where their slots do not touch."""
    run: list[Request] = []
    for request in requests:
        if run and request.slot != run[-1].slot + 1:
            yield run
            run = []
        run.append(request)
    if run:
        yield run

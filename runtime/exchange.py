"""A client's view of one request: events in, tokens and a result out. No socket, no clock.

Rule: the exchange ends with a result or an error, never with silence. A coordinator that says
nothing for a few seconds, pings included, is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from edgeshard.errors import BusyError, LinkError
from edgeshard.runtime import ask
from edgeshard.runtime.ask import Alternative
from edgeshard.runtime.control import error_of
from edgeshard.runtime.parameters import derived_seed
from edgeshard.schemas.common import Activation

PING_SECONDS = 1.0
SILENCE_SECONDS = 4.0


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        text: what it adds to the text; "" while a character or a stop string is unfinished.
        index: from 0.
        seconds: since the request was sent.
        answer: of several; from 0.
        logprob: its log-probability by the model, where `logprobs` was asked for.
        alternatives: the likeliest tokens at its place, as many as were asked for.
    """

    text: str
    token_id: int
    index: int
    seconds: float
    answer: int = 0
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What a traced request left behind: raw marks, each by its own clock."""

    steps: tuple[ask.Timed, ...]
    clocks: tuple[ask.StageClock, ...]


@dataclass(frozen=True)
class Result:
    """An answer that is over.

    Attributes:
        token_ids: all tokens, an end token included.
        first_token_seconds: from sending the request to the first token; 0 without tokens.
        token_seconds: from each token to the next, one less than there are tokens.
        compute_seconds: what the stages spent computing the tokens after the first.
        kept_tokens: of the prompt, that were not computed again as an earlier prompt had them.
        reused_tokens: of these, that decode steps of earlier answers wrote, or that follow such;
            where there are any, the answer may differ from that of a request alone.
        trace: of a traced request: what every step took where; see `runtime/token_times.py`.
        links: how hidden states travelled from each stage to the next; only fp32 loses nothing.
        is_mixed: stages differ in provider, target, precision or ONNX Runtime version: other
            devices of the same model may round, and at a near tie choose, differently.
        depends_on_company: a device computes a row of several otherwise than one alone, and
            requests share its steps: who else was served may have changed a near tie.
        seed: that a request of this answer alone has.
        logprobs: of the tokens, where they were asked for.
        alternatives: of each token, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: ask.FinishReason
    prompt_tokens: int
    first_token_seconds: float
    token_seconds: tuple[float, ...]
    compute_seconds: float
    kept_tokens: int
    is_mixed: bool = False
    trace: Trace | None = None
    seed: int = 0
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    links: tuple[Activation, ...] = ()
    reused_tokens: int = 0
    depends_on_company: bool = False

    @property
    def is_lossy(self) -> bool:
        """Whether hidden states were rounded between stages."""
        return any(link != "fp32" for link in self.links)


class Exchange:
    """One request from its sending to its end."""

    def __init__(self, number: int, endpoint: str, now: float, num_answers: int = 1) -> None:
        self.number = number
        self._endpoint = endpoint
        self._started = now
        self._heard = now
        self._next_ping = now + PING_SECONDS
        self._prompt_tokens = 0
        self._steps: list[ask.Timed] = []
        self._clocks: tuple[ask.StageClock, ...] | None = None
        self._seed = 0
        self._has_failed = False
        self._tokens: list[list[Token]] = [[] for _ in range(num_answers)]
        self._results: list[Result | None] = [None] * num_answers

    @property
    def is_over(self) -> bool:
        """Whether the coordinator has said how the request ended."""
        return self._has_failed or self.results is not None

    @property
    def results(self) -> tuple[Result, ...] | None:
        """All answers, once all are over."""
        known = tuple(one for one in self._results if one is not None)
        return known if len(known) == len(self._results) else None

    @property
    def result(self) -> Result | None:
        """The first answer, once all are over."""
        results = self.results
        return None if results is None else results[0]

    def handle(self, event: ask.Event, now: float) -> Token | None:
        """Apply an event.

        Returns:
            The token that it brings.

        Raises:
            EdgeShardError: the request failed; the class that the coordinator says.
            LinkError: a token is missing.
        """
        self._heard = now
        if isinstance(event, ask.Pong) or event.id not in (self.number, 0):
            return None
        match event:
            case ask.Failed():
                self._has_failed = event.id == self.number
                error = error_of(event.kind, event.reason)
                if isinstance(error, BusyError):
                    error.retry_seconds = event.retry_seconds
                raise error
            case ask.Started():
                self._prompt_tokens, self._seed = event.prompt_tokens, event.seed
            case ask.Piece():
                return self._token(event, now)
            case ask.Timed():
                self._steps.append(event)
            case ask.Clocks():
                self._clocks = event.stages
            case ask.Finished():
                self._finish(event)
        return None

    def _token(self, event: ask.Piece, now: float) -> Token:
        tokens = self._of_answer(event.answer)
        if event.index != len(tokens):
            raise LinkError(f"token {len(tokens)} is missing; ask again")
        token = Token(
            event.text,
            event.token,
            event.index,
            now - self._started,
            event.answer,
            event.logprob,
            event.alternatives,
        )
        tokens.append(token)
        return token

    def _of_answer(self, answer: int) -> list[Token]:
        if answer >= len(self._tokens):
            raise LinkError(f"answer {answer} comes, {len(self._tokens)} were asked for")
        return self._tokens[answer]

    def wants_ping(self, now: float) -> bool:
        """Whether to ask the coordinator now if it is there.

        Raises:
            LinkError: it has not answered for too long.
        """
        if now - self._heard > SILENCE_SECONDS:
            raise LinkError(
                f"the coordinator at {self._endpoint} does not answer for {SILENCE_SECONDS:.0f} s "
                f"after {sum(map(len, self._tokens))} tokens: look at `esc status`"
            )
        if now < self._next_ping:
            return False
        self._next_ping = now + PING_SECONDS
        return True

    def was_away(self, seconds: float) -> None:
        """The caller did other things; that silence was not the coordinator's."""
        self._heard += seconds

    def _finish(self, event: ask.Finished) -> None:
        tokens = self._of_answer(event.answer)
        if event.num_tokens != len(tokens):
            raise LinkError(f"{len(tokens)} of {event.num_tokens} tokens arrived; ask again")
        times = [token.seconds for token in tokens]
        self._results[event.answer] = Result(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=event.reason,
            prompt_tokens=self._prompt_tokens,
            first_token_seconds=times[0] if times else 0.0,
            token_seconds=tuple(b - a for a, b in pairwise(times)),
            compute_seconds=event.compute_seconds,
            kept_tokens=event.kept_tokens,
            is_mixed=event.remarks.is_mixed,
            links=event.remarks.links,
            depends_on_company=event.remarks.depends_on_company,
            reused_tokens=event.reused_tokens,
            trace=None if self._clocks is None else Trace(tuple(self._steps), self._clocks),
            seed=derived_seed(self._seed, event.answer),
            logprobs=tuple(token.logprob for token in tokens if token.logprob is not None),
            alternatives=tuple(token.alternatives for token in tokens if token.alternatives),
        )

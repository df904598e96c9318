"""What the last stage knows of a request beside its logits: how to choose, and what was there.

    Open(sampling, num_seen, num_biases)   Seen(tokens) …   Bias(biases) …   then steps

Rule: counts and sets of token ids, bounded by the context and by `MAX_BIASES`; nobody's word for a
size is taken. A request whose parts did not all come draws no token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeshard.runtime.wire import Sampling


@dataclass(slots=True)
class Wishes:
    """The sampling of one request and the tokens that it depends on.

    Attributes:
        seen: ids in the prompt; only where repetition is penalised.
        biases: added to logits, by token id.
        drawn: how often the answer has each token so far; only where a penalty asks.
        missing_seen: ids that were announced and have not come; those of biases likewise.
    """

    sampling: Sampling
    seen: set[int] = field(default_factory=set)
    biases: dict[int, float] = field(default_factory=dict)
    drawn: Counter[int] = field(default_factory=Counter)
    missing_seen: int = 0
    missing_biases: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was announced is here."""
        return self.missing_seen == self.missing_biases == 0

    @property
    def changes_logits(self) -> bool:
        """Whether anything but temperature and cuts is asked for."""
        return bool(self.biases) or self.counts_tokens

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty asks what is in the answer."""
        one = self.sampling
        return one.repetition != 1 or one.presence != 0 or one.frequency != 0

    def add_seen(self, tokens: Iterable[int]) -> bool:
        """Take ids of the prompt; False where they are more than were announced."""
        before = len(self.seen)
        self.seen.update(tokens)
        self.missing_seen -= len(self.seen) - before
        return self.missing_seen >= 0

    def add_biases(self, biases: Iterable[tuple[int, float]]) -> bool:
        """Take biases; False where they are more than were announced."""
        before = len(self.biases)
        self.biases.update(biases)
        self.missing_biases -= len(self.biases) - before
        return self.missing_biases >= 0

    def add_drawn(self, token: int) -> None:
        """The answer goes on with a token."""
        if self.counts_tokens:
            self.drawn[token] += 1

"""What rounding hidden states between stages costs; `esc verify` measures, `esc plan` shows it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgeshard.schemas.common import Activation, Count, Digest, Positive, Schema

Share = Annotated[float, Meta(ge=0, le=1)]


class LinkAccuracy(Schema, frozen=True, kw_only=True):
    """A chain with rounded links beside the same chain with fp32 links, on the same text.

    Attributes:
        activation: how hidden states travelled at every cut.
        cuts: first units of the stages behind the first one.
        num_scored: positions that were compared.
        mean_kl: mean Kullback-Leibler divergence from fp32 links' distributions, in nats.
        high_kl: its 99th percentile.
        log_ratio: logarithm of the perplexity over that with fp32 links.
        log_ratio_error: standard error of that, taking positions for independent.
        top1_agreement: share of positions whose likeliest token is the same.
    """

    activation: Activation
    cuts: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    num_scored: Positive
    mean_kl: float
    high_kl: float
    log_ratio: float
    log_ratio_error: float
    top1_agreement: Share


class Accuracy(Schema, frozen=True, kw_only=True):
    """What each type of link costs a model.

    Attributes:
        model: digest of the model's manifest.
        perplexity: with fp32 links, on the text that all were measured on.
        window: positions that were seen together.
    """

    format: Literal["edgeshard.accuracy/1"] = "edgeshard.accuracy/1"
    model: Digest
    perplexity: float
    window: Count
    links: tuple[LinkAccuracy, ...]

    def of(self, activation: Activation, cuts: tuple[int, ...]) -> LinkAccuracy | None:
        """What was measured of a type: at these cuts, else where it cost most; None: nothing."""
        known = [link for link in self.links if link.activation == activation]
        exact = [link for link in known if link.cuts == cuts]
        return max(exact or known, key=lambda link: link.mean_kl, default=None)

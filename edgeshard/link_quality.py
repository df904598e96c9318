"""What rounded hidden states cost on a text: a chain with such links beside one with fp32 links.

    text ─ tokens ─ windows ─┬─ shards, fp32 between them ──► log probabilities p
                             └─ the same shards, rounded ───► log probabilities q

Both go through the codec of the wire (`runtime/states.py`). The checkpoint is not needed: what the
links cost is measured against the same compiled model, apart from what quantised weights cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import InputError
from edgeshard.runtime.session import ShardSession
from edgeshard.runtime.states import decode_states, encode_states, unsendable
from edgeshard.schemas.accuracy import Accuracy, LinkAccuracy
from edgeshard.schemas.common import Activation, Blob
from edgeshard.schemas.model import ModelManifest

Reals = NDArray[np.float64]


def measure_links(
    store: Store,
    manifest: ModelManifest,
    blob: Blob,
    windows: Sequence[NDArray[np.int64]],
    activations: Sequence[Activation],
    cuts: tuple[int, ...],
    *,
    threads: int = 0,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Compare rounded links with fp32 links, all of a chain's links in the same type.

    Args:
        store: holds the model.
        manifest: of the model.
        blob: its manifest's blob.
        windows: token ids, `[1, S]` each.
        activations: types to measure.
        cuts: first unit of each stage behind the first.
        threads: 0: all cores.
        on_window: told how many of how many windows are behind.

    Raises:
        InputError: cuts that no chain of this model has.
        DeviceError: a hidden state cannot travel in a type.
    """
    edges = (0, *cuts, len(manifest.units))
    if not cuts or any(stop <= start for start, stop in pairwise(edges)):
        raise InputError(
            f"cuts {', '.join(map(str, cuts)) or '(none)'} do not cut {len(manifest.units)} units; "
            f"give rising numbers from 1 to {len(manifest.units) - 1}, such as 10,20"
        )
    context = max(ids.shape[1] for ids in windows)
    chain = [
        ShardSession.open(
            store, fuse(store, manifest, blob, *edge)[0], threads=threads, context=context
        )
        for edge in pairwise(edges)
    ]
    sums = {activation: _Sums() for activation in activations}
    losses: list[Reals] = []
    for done, ids in enumerate(windows):
        on_window(done, len(windows))
        exact = _log_probabilities(chain, ids, "fp32", manifest.hidden_size)
        losses.append(_losses(exact, ids[0]))
        for activation, one in sums.items():
            one.add(exact, _log_probabilities(chain, ids, activation, manifest.hidden_size), ids[0])
    base = np.concatenate(losses)
    return Accuracy(
        model=blob.digest,
        perplexity=float(np.exp(base.mean())),
        window=context,
        links=tuple(one.result(activation, cuts, base) for activation, one in sums.items()),
    )


class _Sums:
    """What one type of link gave, over the windows so far."""

    def __init__(self) -> None:
        self.losses: list[Reals] = []
        self.divergences: list[Reals] = []
        self.agreed = 0

    def add(self, log_p: Reals, log_q: Reals, ids: NDArray[np.int64]) -> None:
        """Take a window: log probabilities `[S, vocab]` of fp32 links and of these."""
        self.losses.append(_losses(log_q, ids))
        self.divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1)[:-1])
        self.agreed += int((log_p[:-1].argmax(-1) == log_q[:-1].argmax(-1)).sum())

    def result(self, activation: Activation, cuts: tuple[int, ...], base: Reals) -> LinkAccuracy:
        """All windows together; `base` are fp32 links' losses at the same positions."""
        divergences, change = np.concatenate(self.divergences), np.concatenate(self.losses) - base
        return LinkAccuracy(
            activation=activation,
            cuts=cuts,
            num_scored=base.size,
            mean_kl=float(divergences.mean()),
            high_kl=float(np.percentile(divergences, 99)),
            log_ratio=float(change.mean()),
            log_ratio_error=float(change.std() / np.sqrt(change.size)),
            top1_agreement=self.agreed / base.size,
        )


def _log_probabilities(
    chain: Sequence[ShardSession], ids: NDArray[np.int64], activation: Activation, hidden_size: int
) -> Reals:
    """Log probabilities `[S, vocab]` of a window, through the wire's codec at each cut."""
    states = chain[0].run(0, [0], ids, every_position=True)
    for session in chain[1:]:
        encoded = encode_states(states, activation)
        if encoded.lost:
            raise unsendable(activation)
        given = decode_states(encoded.payload, activation, 1, ids.shape[1], hidden_size)
        states = session.run(0, [0], given, every_position=True)
    logits: Reals = states[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def _losses(log_p: Reals, ids: NDArray[np.int64]) -> Reals:
    """Negative log likelihood `[S - 1]` of each token after the first."""
    picked: Reals = log_p[np.arange(len(ids) - 1), ids[1:]]
    return -picked

"""What quantisation costs on a text: perplexity, divergence, agreement, and the share of each unit.

    text ─ tokens ─ windows ─┬─ transformers, fp32 ──► hidden states between all units, logits
                             └─ each compiled model, unit by unit:
                                  fed the reference's states ──► error of this unit alone
                                  fed its own                ──► error so far, at last the logits

Windows do not overlap and know nothing of each other; every position but a window's last is scored.
All models see the same windows, so that differences between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest, Unit
from edgeshard.verify import check_source, hidden_states, reference_model

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]

# Tensors of a blob that hold weights; the rest are tables (rotary angles, zero points).
_WEIGHT_PARTS = {"weight", "bias", "codes", "scales", "steps", "zeros", "offsets"}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class UnitQuality:
    """Error of one unit: root mean square of the difference over that of the reference.

    Attributes:
        bits_per_weight: what its own weights take in the store; 0 where it has none.
        alone: with the reference's input.
        so_far: with the output of the units before it.
    """

    unit: str
    bits_per_weight: float
    alone: float
    so_far: float


@dataclass(frozen=True)
class ModelQuality:
    """What one compiled model loses.

    Attributes:
        weights_bytes: all weights with their scales, as stored.
        bits_per_weight: the same in bits, over the number of parameters.
        perplexity: exponential of the mean negative log likelihood.
        log_ratio: logarithm of the perplexity over the reference's.
        log_ratio_error: standard error of that, taking positions for independent.
        mean_kl: mean Kullback-Leibler divergence from the reference's distributions, in nats.
        high_kl: its 99th percentile.
        top1_agreement: share of positions whose likeliest token is the reference's.
    """

    name: str
    precision: str
    weights_bytes: int
    bits_per_weight: float
    perplexity: float
    log_ratio: float
    log_ratio_error: float
    mean_kl: float
    high_kl: float
    top1_agreement: float
    units: tuple[UnitQuality, ...]


@dataclass(frozen=True)
class Quality:
    """What `measure_quality` found.

    Attributes:
        num_scored: positions whose next token was scored.
        perplexity: of the fp32 reference.
    """

    num_scored: int
    perplexity: float
    models: tuple[ModelQuality, ...]


def measure_quality(
    store: Store,
    models: Sequence[tuple[ModelManifest, Blob]],
    checkpoint_path: Path,
    windows: Sequence[NDArray[np.int64]],
    *,
    threads: int = 0,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Score compiled models beside the fp32 checkpoint that they were made from.

    Args:
        store: holds the models.
        models: manifests and their blobs.
        checkpoint_path: what all of them were compiled from.
        windows: token ids, `[1, S]` each.
        threads: 0: all cores.
        on_window: told how many of how many windows are behind.

    Raises:
        InputError: the checkpoint is not the one that a model was compiled from.
        ArtifactError: the store is corrupt.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    for manifest, _ in models:
        check_source(checkpoint, manifest)
    reference = reference_model(checkpoint)
    scores = [
        _Score(store, manifest, blob, max(ids.shape[1] for ids in windows), threads)
        for manifest, blob in models
    ]
    losses: list[Reals] = []
    for done, ids in enumerate(windows):
        on_window(done, len(windows))
        with torch.no_grad():
            expected = hidden_states(reference, torch.from_numpy(ids))
        log_p = log_softmax(expected[-1][0])
        losses.append(next_token_losses(log_p, ids[0]))
        for score in scores:
            score.add(ids, expected, log_p)
    base = np.concatenate(losses)
    return Quality(base.size, float(np.exp(base.mean())), tuple(s.result(base) for s in scores))


class _Score:
    """The units of one model, loaded, and the sums over the windows so far."""

    def __init__(
        self, store: Store, model: ModelManifest, blob: Blob, context: int, threads: int
    ) -> None:
        self.model = model
        self.sizes = weight_sizes(store, model.units)
        self.sessions = []
        for index in range(len(model.units)):
            shard, _ = fuse(store, model, blob, index, index + 1)
            self.sessions.append(ShardSession.open(store, shard, threads=threads, context=context))
        self.sums = [_UnitSums() for _ in model.units]
        self.losses: list[Reals] = []
        self.divergences: list[Reals] = []
        self.agreed = 0

    def add(self, ids: NDArray[np.int64], expected: Sequence[Floats], log_p: torch.Tensor) -> None:
        """Run one window: `expected` holds every unit's output, `log_p` the last one's."""
        own: NDArray[Any] = ids
        given: NDArray[Any] = ids
        for session, sums, wanted in zip(self.sessions, self.sums, expected, strict=True):
            alone = session.run(0, [0], given, every_position=True)
            sums.alone += _squared(alone, wanted)
            sums.scale += _squared(wanted, np.float32(0))
            own = session.run(0, [0], own, every_position=True).copy()
            sums.so_far += _squared(own, wanted)
            given = wanted
        log_q = log_softmax(own[0])
        self.losses.append(next_token_losses(log_q, ids[0]))
        self.divergences.append((log_p.exp() * (log_p - log_q)).sum(-1)[:-1].numpy())
        self.agreed += int((log_p[:-1].argmax(-1) == log_q[:-1].argmax(-1)).sum())

    def result(self, base: Reals) -> ModelQuality:
        """All windows together; `base` are the reference's losses at the same positions."""
        losses, divergences = np.concatenate(self.losses), np.concatenate(self.divergences)
        difference = losses - base
        total_bytes = sum(size for size, _ in self.sizes)
        return ModelQuality(
            name=self.model.name,
            precision=self.model.precision,
            weights_bytes=total_bytes,
            bits_per_weight=_bits(total_bytes, sum(count for _, count in self.sizes)),
            perplexity=float(np.exp(losses.mean())),
            log_ratio=float(difference.mean()),
            log_ratio_error=float(difference.std() / np.sqrt(difference.size)),
            mean_kl=float(divergences.mean()),
            high_kl=float(np.percentile(divergences, 99)),
            top1_agreement=self.agreed / losses.size,
            units=tuple(
                UnitQuality(
                    unit.name,
                    _bits(*size),
                    float(np.sqrt(sums.alone / (sums.scale or 1.0))),
                    float(np.sqrt(sums.so_far / (sums.scale or 1.0))),
                )
                for unit, size, sums in zip(self.model.units, self.sizes, self.sums, strict=True)
            ),
        )


@dataclass
class _UnitSums:
    """Sums of squares over all windows."""

    alone: float = 0.0
    so_far: float = 0.0
    scale: float = 0.0


def weight_sizes(store: Store, units: Sequence[Unit]) -> list[tuple[int, int]]:
    """Bytes and number of each unit's own weights; a tied head's matrix is the embedding's."""
    seen: set[str] = set()
    sizes = []
    for unit in units:
        total = 0
        for blob in unit.weights:
            if blob.digest in seen:
                continue
            seen.add(blob.digest)
            with safe_open(store.path(blob), "numpy") as file:
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    _, dot, part = name.rpartition(".")
                    if dot and part in _WEIGHT_PARTS:
                        tensor = file.get_slice(name)
                        total += math.prod(tensor.get_shape()) * _ITEM_BYTES[tensor.get_dtype()]
        sizes.append((total, unit.num_parameters))
    return sizes


def log_softmax(logits: Floats) -> torch.Tensor:
    """Log probabilities `[S, vocab]`, in double precision: divergences may be tiny."""
    return torch.log_softmax(torch.from_numpy(logits).double(), -1)


def next_token_losses(log_p: torch.Tensor, ids: NDArray[np.int64]) -> Reals:
    """Negative log likelihood `[S - 1]` of each token after the first."""
    picked = log_p[:-1].gather(1, torch.from_numpy(ids[1:])[:, None])
    return np.asarray(-picked[:, 0].numpy(), np.float64)


def _squared(found: Floats, expected: Floats | np.float32) -> float:
    return float(np.sum(np.square(found - expected, dtype=np.float64)))


def _bits(size_bytes: int, count: int) -> float:
    return 8 * size_bytes / count if count else 0.0

"""Compares a compiled model with its checkpoint: every unit on its own, then the whole chain.

checkpoint ── transformers, fp32 ──► hidden states between all units, logits
each unit  ── fed the reference's input ──► error of this unit alone
all units  ── fed each other's output ──► error end to end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.errors import InputError
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class UnitError:
    """How far one unit's output is from the reference's, given the reference's input.

    Attributes:
        relative: root mean square of the difference over that of the reference.
        largest: largest absolute difference.
    """

    unit: str
    relative: float
    largest: float


@dataclass(frozen=True)
class Verification:
    """What `verify_model` found.

    Attributes:
        relative: as for a unit, of the logits at all positions, end to end.
        largest: largest absolute difference of a logit.
        mean_kl: mean Kullback-Leibler divergence of next-token distributions, in nats.
        top1_agreement: share of positions whose likeliest token agrees.
        identical_tokens: leading greedy tokens that agree with transformers' `generate`.
        num_tokens: greedy tokens compared.
    """

    units: tuple[UnitError, ...]
    relative: float
    largest: float
    mean_kl: float
    top1_agreement: float
    identical_tokens: int
    num_tokens: int


def verify_model(
    store: Store,
    model: ModelManifest,
    blob: Blob,
    checkpoint_path: Path,
    token_ids: Sequence[int],
    *,
    num_tokens: int = 16,
    threads: int = 0,
    on_unit: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Measure the error of every unit and of the whole.

    Args:
        store: holds the model.
        model: what to check.
        blob: its manifest.
        checkpoint_path: what it was compiled from.
        token_ids: the text to check on.
        num_tokens: greedy tokens to compare after the text.
        threads: 0: all cores.
        on_unit: told before every unit.

    Raises:
        InputError: the checkpoint is not the one that the model was compiled from.
        ArtifactError: the store is corrupt.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    check_source(checkpoint, model)
    reference = reference_model(checkpoint)
    ids = np.array([list(token_ids)], np.int64)
    with torch.no_grad():
        expected = hidden_states(reference, torch.from_numpy(ids))
        generated = reference.generate(
            torch.from_numpy(ids), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
        )[0, ids.shape[1] :].tolist()
    errors: list[UnitError] = []
    value: NDArray[Any] = ids
    context = min(model.max_context, ids.shape[1] + num_tokens + 1)
    for index, unit in enumerate(model.units):
        on_unit(unit.name)
        shard, _ = fuse(store, model, blob, index, index + 1)
        session = ShardSession.open(store, shard, threads=threads, context=context)
        alone = session.run(0, [0], expected[index - 1] if index else ids, every_position=True)
        errors.append(UnitError(unit.name, *_difference(alone, expected[index])))
        value = session.run(0, [0], value, every_position=True).copy()
        session.close()
    on_unit("greedy tokens")
    found = greedy(store, model, blob, token_ids, num_tokens, context, threads)
    logits = expected[-1][0]
    ours = np.asarray(value, np.float32)[0]
    identical = next(
        (i for i, (a, b) in enumerate(zip(found, generated, strict=True)) if a != b), num_tokens
    )
    return Verification(
        units=tuple(errors),
        relative=_difference(ours, logits)[0],
        largest=_difference(ours, logits)[1],
        mean_kl=float(_kl(logits, ours).mean()),
        top1_agreement=float((ours.argmax(-1) == logits.argmax(-1)).mean()),
        identical_tokens=identical,
        num_tokens=num_tokens,
    )


def check_source(checkpoint: Checkpoint, model: ModelManifest) -> None:
    """Refuse a checkpoint that a model was not compiled from.

    Raises:
        InputError: names both digests.
    """
    digest, expected = checkpoint.digest(), model.source.digest
    if digest.partition(":")[0] != expected.partition(":")[0]:
        raise InputError(
            f"{model.name} names its checkpoint by {expected}, this version by {digest}; compile "
            "it again"
        )
    if digest != expected:
        raise InputError(
            f"{checkpoint.path} is {digest}, {model.name} was compiled from {expected}"
        )


def reference_model(checkpoint: Checkpoint) -> transformers.PreTrainedModel:
    """The checkpoint as transformers' own fp32 model."""
    model = transformers.AutoModelForCausalLM.from_config(
        checkpoint.config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    found = checkpoint.names()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = name.removeprefix("model.")
            if plain in found:
                parameter.copy_(torch.from_numpy(checkpoint.floats(plain)))
            elif plain != "lm_head.weight":
                raise InputError(f"{checkpoint.path} has no tensor {plain}")
    return model


def greedy(
    store: Store,
    model: ModelManifest,
    blob: Blob,
    token_ids: Sequence[int],
    num_tokens: int,
    context: int,
    threads: int = 0,
) -> list[int]:
    """Greedy tokens of the whole model as one shard, without sockets."""
    shard, _ = fuse(store, model, blob, 0, len(model.units))
    session = ShardSession.open(store, shard, threads=threads, context=context)
    tokens: list[int] = []
    values, position = np.array([list(token_ids)], np.int64), 0
    for _ in range(num_tokens):
        logits = session.run(0, [position], values)
        position += values.shape[1]
        tokens.append(int(logits[0].argmax()))
        values = np.array([[tokens[-1]]], np.int64)
    session.close()
    return tokens


def hidden_states(model: transformers.PreTrainedModel, ids: torch.Tensor) -> list[Floats]:
    """Outputs of every unit: the embedding as the first block gets it, each block, the logits."""
    states: list[Floats] = []

    def keep(value: object) -> None:
        assert isinstance(value, torch.Tensor)
        states.append(value.detach().numpy().copy())

    layers = model.model.layers
    hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda _, __, output: keep(output)) for layer in layers]
    keep(model(ids).logits)
    for hook in hooks:
        hook.remove()
    return states


def _difference(found: Floats, expected: Floats) -> tuple[float, float]:
    difference = np.asarray(found, np.float64) - expected
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(difference**2))) / scale, float(np.abs(difference).max())


def _kl(expected: Floats, found: Floats) -> NDArray[np.float64]:
    p, q = (_log_softmax(values) for values in (expected, found))
    return np.asarray((np.exp(p) * (p - q)).sum(-1), np.float64)


def _log_softmax(values: Floats) -> NDArray[np.float64]:
    shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)

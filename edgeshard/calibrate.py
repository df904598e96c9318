"""Measures on a text what the quantiser should know.

    forward    mean square of what flows into each column           → importance
    quantise   int4 and int8 of every matrix under that importance  → squared errors δ² of weights
    backward   squared gradients g² of the log likelihood           → gain: ½ Σ g² (δ₄² − δ₈²)

The tokens whose likelihood is differentiated are drawn from the model's own predictions, so that
mean g² is the diagonal of the Fisher information and a gain estimates a divergence in nats a token
(second order, errors of different weights taken for independent). The whole model is held in fp32,
with its gradients: four times what it takes in bf16, and as much again for the errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.encoding import block_encoding, decode, quantise
from edgeshard.errors import InputError
from edgeshard.verify import reference_model
from edgeshard.windows import windows_of

Floats = NDArray[np.float32]
WINDOW = 128
MAX_WINDOWS = 12
SEED = 0
_LEAST = 1e-3  # of the mean importance: no column is given up


def calibrate(
    path: Path,
    text: str,
    *,
    with_gains: bool,
    on_step: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Run a checkpoint over a text, of which `MAX_WINDOWS` windows, spread evenly, are read.

    Args:
        path: of the checkpoint.
        text: like what the model is for.
        with_gains: measure gains too, which takes most of the time and memory.
        on_step: told what is being done.

    Raises:
        InputError: no tokenizer in the checkpoint, or less text than a window.
    """
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer; calibrating needs one")
    windows = windows_of(tokenizer(text)["input_ids"], WINDOW, MAX_WINDOWS)
    on_step("loading the model")
    model = reference_model(checkpoint)
    on_step("inputs of all matrices")
    importance = _importance(model, checkpoint, windows)
    if not with_gains:
        return Calibration(importance)
    on_step("errors of all weights")
    errors = {
        name: _saved_error(parameter.detach().numpy(), importance.get(name))
        for name, parameter in _matrices(model, checkpoint).items()
    }
    on_step("gradients")
    return Calibration(importance, _gains(model, checkpoint, windows, errors))


def _matrices(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint
) -> dict[str, torch.nn.Parameter]:
    return {
        _plain(name, checkpoint): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


def _plain(name: str, checkpoint: Checkpoint) -> str:
    """A tensor's name in the checkpoint; a tied head is the embedding."""
    plain = name.removeprefix("model.")
    return plain if plain in checkpoint.names() else "embed_tokens.weight"


def _importance(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint, windows: list[NDArray[np.int64]]
) -> dict[str, Floats]:
    sums: dict[str, torch.Tensor] = {}

    def look_at(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    hooks = [
        module.register_forward_pre_hook(look_at(_plain(f"{name}.weight", checkpoint)))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for ids in windows:
            model(torch.from_numpy(ids))
    for hook in hooks:
        hook.remove()
    found = {}
    for name, squares in sums.items():
        share = squares.numpy() / (squares.mean().item() or 1.0)
        # Half precision: what the last bits of a sum are must not decide a byte of a blob.
        found[name] = np.maximum(share, _LEAST).astype(np.float16).astype(np.float32)
    return found


def _saved_error(weight: Floats, importance: Floats | None) -> torch.Tensor:
    """Squared errors `[N, K]` in int4 less those in int8."""
    squares = [
        np.square(decode(quantise(weight, encoding, importance), encoding) - weight)
        for encoding in (block_encoding(bits, weight.shape[1], fine=True) for bits in (4, 8))
    ]
    return torch.from_numpy(squares[0] - squares[1])


def _gains(
    model: transformers.PreTrainedModel,
    checkpoint: Checkpoint,
    windows: list[NDArray[np.int64]],
    errors: dict[str, torch.Tensor],
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(SEED)
    parameters = _matrices(model, checkpoint)
    gains = dict.fromkeys(parameters, 0.0)
    num_tokens = sum(ids.size for ids in windows)
    for ids in windows:
        logits = model(torch.from_numpy(ids)).logits[0]
        chances = torch.softmax(logits.detach(), -1)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            gains[name] += float((parameter.grad.square() * errors[name]).sum()) / 2 / num_tokens
    model.zero_grad(set_to_none=True)
    return gains

"""Measures on a text what the quantiser should know.

    forward    M, mean of x xᵀ over what flows in  → importance, how codes are moved
    quantise   int4 and int8, as they will be      → errors E of weights, E M Eᵀ of outputs
    backward   squared gradients g² of outputs     → gain: ½ Σ g² (E₄ M E₄ᵀ − E₈ M E₈ᵀ)

The tokens whose likelihood is differentiated are drawn from the model's own predictions, so that a
gain estimates a divergence in nats a token: to second order, inputs and gradients taken for
independent, and outputs of one another (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", 2015, arXiv:1503.05671). An embedding's errors are taken
row by row instead. The whole model is held in fp32, with M and what is made of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from numpy.typing import NDArray

from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.encoding import block_encoding, decode, quantise
from edgeshard.compiler.error_feedback import feedback
from edgeshard.errors import InputError
from edgeshard.verify import reference_model
from edgeshard.windows import windows_of

Floats = NDArray[np.float32]
Inputs = tuple[torch.Tensor, ...]
WINDOW = 128
MAX_WINDOWS = 12  # with gradients
MOST_WINDOWS = 64  # forward alone
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
        InputError: no tokenizer in the checkpoint, less text than a window, or a model that does
            not fit into memory.
    """
    checkpoint = open_checkpoint(path)
    check_room(checkpoint, psutil.virtual_memory().available)
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer; calibrating needs one")
    ids = tokenizer(text)["input_ids"]
    on_step("loading the model")
    model = reference_model(checkpoint)
    on_step("inputs of all matrices")
    moments = _moments(model, checkpoint, windows_of(ids, WINDOW, MOST_WINDOWS))
    importance = {name: _importance(products) for name, products in moments.items()}
    moved = _moved(moments)
    if not with_gains:
        return Calibration(importance, moved=moved)
    on_step("errors of all weights")
    saved: dict[torch.nn.Module, tuple[str, Floats]] = {}
    for name, module in _modules(model, checkpoint):
        weight = module.weight.detach().numpy()
        errors = _errors(weight, importance.get(name), moved.get(name))
        if isinstance(module, torch.nn.Embedding):
            scale = np.float32(getattr(module, "embed_scale", 1))  # some multiply what they look up
            saved[module] = name, scale**2 * (np.square(errors[0]) - np.square(errors[1]))
        else:
            saved[module] = name, _saved(errors, moments[name])
    del moments
    on_step("gradients")
    windows = windows_of(ids, WINDOW, MAX_WINDOWS)
    return Calibration(importance, _gains(model, windows, saved), moved)


def check_room(checkpoint: Checkpoint, available: int) -> None:
    """Refuse what cannot fit: the model and the moments alone, the rest comes on top.

    Raises:
        InputError: it takes more than `available` bytes.
    """
    shapes = [checkpoint.shape(name) for name in checkpoint.names()]
    values = sum(math.prod(shape) for shape in shapes)
    values += sum(shape[1] ** 2 for shape in shapes if len(shape) == 2)
    needed = 4 * values
    if needed > available:
        raise InputError(
            f"calibrating {checkpoint.path} needs more than {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} are available; leave --calibrate out"
        )


def _modules(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint
) -> Iterator[tuple[str, torch.nn.Linear | torch.nn.Embedding]]:
    """Modules that have a matrix, under its name in the checkpoint; a tied one comes twice."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            yield _plain(f"{name}.weight", checkpoint), module


def _plain(name: str, checkpoint: Checkpoint) -> str:
    """A tensor's name in the checkpoint; a tied head is the embedding."""
    plain = name.removeprefix("model.")
    return plain if plain in checkpoint.names() else "embed_tokens.weight"


def _moments(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint, windows: list[NDArray[np.int64]]
) -> dict[str, Floats]:
    """Mean of x xᵀ, `[K, K]`, over what flows into each matrix."""
    sums: dict[str, torch.Tensor] = {}

    def look_at(name: str) -> Callable[[torch.nn.Module, Inputs], None]:
        def add(_: torch.nn.Module, inputs: Inputs) -> None:
            rows = inputs[0].flatten(0, -2)
            products = rows.T @ rows
            sums[name] = sums[name].add_(products) if name in sums else products

        return add

    hooks = [
        module.register_forward_pre_hook(look_at(name))
        for name, module in _modules(model, checkpoint)
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for ids in windows:
            model(torch.from_numpy(ids))
    for hook in hooks:
        hook.remove()
    num_tokens = sum(ids.size for ids in windows)
    return {name: (products / num_tokens).numpy() for name, products in sums.items()}


def _importance(moments: Floats) -> Floats:
    """Mean square of each column over that of all of them."""
    squares = np.diag(moments)
    share = squares / (squares.mean() or 1.0)
    # Half precision: what the last bits of a sum are must not decide a byte of a blob.
    return np.maximum(share, _LEAST).astype(np.float16).astype(np.float32)


def _moved(moments: dict[str, Floats]) -> dict[str, Floats]:
    """How columns make up for one another; matrices with one input share what is known of it."""
    made: dict[bytes, Floats] = {}
    found = {}
    for name, products in moments.items():
        key = hashlib.sha256(products.tobytes()).digest()
        if key not in made:
            made[key] = feedback(products)
        found[name] = made[key]
    return found


def _errors(weight: Floats, importance: Floats | None, moved: Floats | None) -> list[Floats]:
    """Errors `[N, K]` of a matrix in int4 and in int8."""
    encodings = (block_encoding(bits, weight.shape[1], fine=True) for bits in (4, 8))
    return [decode(quantise(weight, e, importance, moved), e) - weight for e in encodings]


def _saved(errors: list[Floats], moments: Floats) -> Floats:
    """Mean square error of each output `[N]` in int4 less that in int8: the diagonal of E M Eᵀ."""
    low, high = (((error @ moments) * error).sum(1) for error in errors)
    return np.asarray(low - high, np.float32)


def _gains(
    model: transformers.PreTrainedModel,
    windows: list[NDArray[np.int64]],
    saved: dict[torch.nn.Module, tuple[str, Floats]],
) -> dict[str, float]:
    """Nats a token that each matrix would save, from what its module's outputs would save.

    `saved` has a module's matrix and the square errors of its outputs: `[N]`, of the embedding
    `[vocabulary, N]`.
    """
    generator = torch.Generator().manual_seed(SEED)
    gains = {name: 0.0 for name, _ in saved.values()}
    num_tokens = sum(ids.size for ids in windows)

    def look_at(name: str, squares: torch.Tensor) -> Callable[..., None]:
        def on_output(
            _: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
        ) -> None:
            errors = squares[inputs[0]] if squares.ndim == 2 else squares

            def add(gradient: torch.Tensor) -> None:
                gains[name] += float((gradient.square() * errors).sum()) / 2 / num_tokens

            if not output.requires_grad:  # the embedding's: where gradients end
                output.requires_grad_()
            output.register_hook(add)  # type: ignore[no-untyped-call]

        return on_output

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    hooks = [
        module.register_forward_hook(look_at(name, torch.from_numpy(squares)))
        for module, (name, squares) in saved.items()
    ]
    for ids in windows:
        logits = model(torch.from_numpy(ids)).logits[0]
        chances = torch.softmax(logits.detach(), -1)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    return gains

"""What a text says of the weights: mean squares of inputs, and gains that predict divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeshard.calibrate import MAX_WINDOWS, WINDOW, calibrate, check_room
from edgeshard.compiler.checkpoint import open_checkpoint
from edgeshard.compiler.encoding import block_encoding, decode, quantise
from edgeshard.errors import InputError
from support.tiny_llama import NUM_BLOCKS, folder, reference, save_worded

TEXT = "".join(chr(40 + i % 80) for i in range(3 * WINDOW + 5))


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer knows single characters."""
    return save_worded(tmp_path_factory.mktemp("worded") / "model")


def test_importance_is_the_mean_square_of_what_flows_in(worded: Path) -> None:
    found = calibrate(worded, TEXT, with_gains=False)

    model, seen = reference("grouped"), []
    last = model.model.layers[0].mlp.down_proj
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for start in range(0, 3 * WINDOW, WINDOW):
            model(torch.tensor([[ord(c) for c in TEXT[start : start + WINDOW]]]))
    hook.remove()
    squares = torch.cat(seen, 1).square().mean((0, 1))
    expected = (squares / squares.mean()).clamp(1e-3).numpy()
    importance = found.importance["layers.0.mlp.down_proj.weight"]
    np.testing.assert_allclose(importance, expected, rtol=2e-3)
    moved = found.moved["layers.0.mlp.down_proj.weight"]
    assert moved.shape == (importance.size, importance.size)
    np.testing.assert_allclose(np.diag(moved), 1, rtol=1e-6)
    assert not np.tril(moved, -1).any()
    query, key = (found.moved[f"layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    assert query is key
    assert found.gains == {}
    assert len(found.importance) == 7 * NUM_BLOCKS + 1  # the tied head counts for the embedding


def test_two_runs_agree(worded: Path) -> None:
    one, other = (calibrate(worded, TEXT, with_gains=True) for _ in range(2))

    assert one.gains == other.gains
    for name in one.importance:
        np.testing.assert_array_equal(one.importance[name], other.importance[name])
    assert all(gain > 0 for gain in one.gains.values())
    assert len(one.gains) == 7 * NUM_BLOCKS + 1


@pytest.mark.parametrize(
    "name",
    # The embedding loses a nat here, which no second order tells.
    ["layers.0.self_attn.v_proj", "layers.0.mlp.gate_proj", "layers.1.mlp.down_proj"],
)
def test_a_gain_is_about_the_divergence_that_int8_saves(name: str, worded: Path) -> None:
    found, weight = calibrate(worded, TEXT, with_gains=True), f"{name}.weight"
    model = reference("grouped")
    matrix = model.model.get_parameter(weight)
    kept = matrix.detach().clone()
    windows = [[ord(c) for c in TEXT[at : at + WINDOW]] for at in range(0, 3 * WINDOW, WINDOW)]

    def said() -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor(windows)).logits, -1).double()

    expected, lost = said(), []
    for bits in (4, 8):
        encoding = block_encoding(bits, kept.shape[1], fine=True)
        how = found.importance.get(weight), found.moved.get(weight)
        rounded = decode(quantise(kept.numpy(), encoding, *how), encoding)
        with torch.no_grad():
            matrix.copy_(torch.from_numpy(rounded))
        lost.append(float((expected.exp() * (expected - said())).sum(-1).mean()))
        with torch.no_grad():
            matrix.copy_(kept)
    assert 0.4 < found.gains[weight] / (lost[0] - lost[1]) < 2.5


def test_a_long_text_is_read_in_part(worded: Path) -> None:
    steps: list[str] = []

    found = calibrate(worded, TEXT * MAX_WINDOWS, with_gains=False, on_step=steps.append)

    assert found.importance
    assert steps == ["loading the model", "inputs of all matrices"]


def test_what_does_not_fit_is_refused_with_the_limit(worded: Path) -> None:
    checkpoint = open_checkpoint(worded)
    shapes = [checkpoint.shape(name) for name in checkpoint.names()]
    weights = 4 * sum(int(np.prod(shape)) for shape in shapes)

    check_room(checkpoint, 4 * weights)
    with pytest.raises(
        InputError, match=r"needs more than .* are available; leave --calibrate out"
    ):
        check_room(checkpoint, weights)


def test_without_a_tokenizer_it_is_refused() -> None:
    with pytest.raises(InputError, match="has no tokenizer"):
        calibrate(folder("grouped"), TEXT, with_gains=False)

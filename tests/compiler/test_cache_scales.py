"""Scales of keys and values in int8 hold whatever position a key is turned to."""

from __future__ import annotations

import numpy as np

from edgeshard.compiler.cache_scales import MARGIN, MOST, cache_scales


def _turned(keys: np.ndarray, rotary_dim: int, angle: float) -> np.ndarray:
    half = rotary_dim // 2
    first, second = keys[..., :half], keys[..., half:rotary_dim]
    cos, sin = np.cos(angle), np.sin(angle)
    parts = [first * cos - second * sin, second * cos + first * sin, keys[..., rotary_dim:]]
    return np.concatenate(parts, -1)


def test_no_turned_key_leaves_the_codes() -> None:
    generator = np.random.default_rng(0)
    keys = generator.standard_normal((50, 3, 24), np.float32)
    values = generator.standard_normal((50, 3, 24), np.float32) * 5

    scales = cache_scales(keys, values, 16)

    assert scales["key"].shape == scales["value"].shape == (1, 3, 1, 24)
    reached = np.stack([np.abs(_turned(keys, 16, angle)) for angle in np.linspace(0, 6.3, 400)])
    codes = reached.max((0, 1)) / scales["key"][0, :, 0]
    assert codes.max() <= MOST / MARGIN * 1.001
    np.testing.assert_allclose(codes, MOST / MARGIN, rtol=5e-3)  # and no channel wastes any
    np.testing.assert_allclose(
        np.abs(values).max(0) / scales["value"][0, :, 0], MOST / MARGIN, rtol=1e-3
    )


def test_a_channel_that_is_always_zero_has_a_scale_to_divide_by() -> None:
    empty = np.zeros((4, 1, 16), np.float32)

    scales = cache_scales(empty, empty, 0)

    assert (scales["key"] > 0).all()
    assert np.isfinite(empty[0] / scales["value"][0, :, 0]).all()

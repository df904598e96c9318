"""Compares what a trace takes for granted with what the model's modules compute.

A norm or a rotary embedding enters the trace by its name. Here its own code runs on a few numbers,
so that one which only looks like what we know is refused instead of compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeshard.errors import InputError

_SIZE = 16
_TOLERANCE = 1e-5


def norm_kind(kind: Any, epsilon: float) -> bool:
    """Whether a root-mean-square norm scales by `1 + weight` instead of `weight`.

    Raises:
        InputError: it computes something else.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, _SIZE, generator=draw)
    weight = torch.randn(_SIZE, generator=draw)
    norm = kind(_SIZE, eps=epsilon)
    with torch.no_grad():
        norm.weight.copy_(weight)
        found = norm(x)
        plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
        for plus_one in (False, True):
            if torch.allclose(found, plain * (weight + plus_one), atol=_TOLERANCE):
                return plus_one
    raise InputError(f"{kind.__name__} is not a root-mean-square norm that is known here")


def check_rotary(apply: Callable[..., tuple[torch.Tensor, torch.Tensor]], partial: bool) -> None:
    """Compare a model's rotary function with the rotation of channel halves.

    Args:
        apply: the function; takes queries, keys, cosines and sines.
        partial: whether the model turns the first channels of a head only; the others have to come
            out as they went in.

    Raises:
        InputError: it pairs other channels, or treats the rest of them otherwise.
    """
    draw = torch.Generator().manual_seed(0)
    turned = _SIZE // 2 if partial else _SIZE
    q, k = (torch.randn(1, heads, 3, _SIZE, generator=draw) for heads in (2, 1))
    angles = torch.randn(1, 3, turned // 2, generator=draw)
    cos, sin = (torch.cat((f(angles), f(angles)), dim=-1) for f in (torch.cos, torch.sin))
    try:
        results = apply(q, k, cos, sin)
    except RuntimeError as error:
        raise InputError(
            "a rotary embedding of a part of the channels, which this family's code does not have"
        ) from error
    for found, x in zip(results, (q, k), strict=True):
        low, high = x[..., :turned].chunk(2, dim=-1)
        front = x[..., :turned] * cos + torch.cat((-high, low), dim=-1) * sin
        expected = torch.cat((front, x[..., turned:]), dim=-1)
        if not torch.allclose(found, expected, atol=_TOLERANCE):
            raise InputError(
                "a rotary embedding that pairs other channels than c and c + D/2 is not supported"
            )

"""Passes over semantic nodes."""

from __future__ import annotations

import math

from edgeshard.compiler.semantic import Node, fold_scale


def _attention(scale: float) -> Node:
    return Node("Attention", ("qkv",), ("y",), {"scale": scale, "num_heads": 2})


def test_a_scale_moves_into_the_rotary_tables() -> None:
    linear = Node("Linear", ("x",), ("qkv",))

    nodes, factor = fold_scale([linear, _attention(0.25)])

    assert nodes == [linear, _attention(1.0)]
    assert math.isclose(factor, 0.5)


def test_scales_that_differ_stay_where_they_are() -> None:
    nodes, factor = fold_scale([_attention(0.25), _attention(0.5)])

    assert nodes == [_attention(0.25), _attention(0.5)]
    assert factor == 1.0

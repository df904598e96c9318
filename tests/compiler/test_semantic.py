"""Passes over semantic nodes."""

from __future__ import annotations

import math

from edgeshard.compiler.semantic import Model, Node, Value, fold_scale


def _attention(scale: float, table: str = "default", rotary_dim: int = 16) -> Node:
    attributes: dict[str, Value] = {"scale": scale, "table": table}
    attributes |= {"rotary_dim": rotary_dim, "head_dim": 16}
    return Node("Attention", ("qkv",), ("y",), attributes)


def _model(*attentions: Node) -> Model:
    linear = Node("Linear", ("x",), ("qkv",))
    return Model((), tuple((linear, attention) for attention in attentions), ())


def test_a_scale_moves_into_the_rotary_tables() -> None:
    model, factors = fold_scale(_model(_attention(0.25), _attention(0.25)))

    assert model == _model(_attention(1.0), _attention(1.0))
    assert list(factors) == ["default"]
    assert math.isclose(factors["default"], 0.5)


def test_blocks_that_shared_their_nodes_still_do() -> None:
    nodes = (_attention(0.25),)

    model, _ = fold_scale(Model((), (nodes, (_attention(0.25, "other"),), nodes), ()))

    assert model.blocks[0] is model.blocks[2]
    assert len(model.kinds) == 2


def test_scales_that_differ_on_one_table_stay_where_they_are() -> None:
    model = _model(_attention(0.25), _attention(0.5))

    assert fold_scale(model) == (model, {})


def test_every_table_takes_the_scale_of_its_own_attentions() -> None:
    model, factors = fold_scale(_model(_attention(0.25, "near"), _attention(0.04, "far")))

    assert model == _model(_attention(1.0, "near"), _attention(1.0, "far"))
    assert {kind: round(factor, 6) for kind, factor in factors.items()} == {"near": 0.5, "far": 0.2}


def test_attention_without_positions_keeps_its_scale() -> None:
    model = _model(_attention(0.25, "", 0))

    assert fold_scale(model) == (model, {})


def test_partly_turned_heads_keep_their_scale() -> None:
    """The channels beyond the rotated ones would stay unscaled."""
    model = _model(_attention(0.25, rotary_dim=8))

    assert fold_scale(model) == (model, {})

"""Products of one input become one product and a split."""

from __future__ import annotations

from edgeshard.compiler.encoding import FLOAT, Encoding
from edgeshard.compiler.join_products import join_products
from edgeshard.compiler.semantic import Model, Node, Value

INT4, INT8 = Encoding("zero_blocks", 4, 64), Encoding("step_blocks", 8, 64)


def _linear(name: str, source: str, rows: int, biases: tuple[str, ...] = ()) -> Node:
    attributes: dict[str, Value] = {"weights": (f"{name}.weight",), "biases": biases}
    attributes |= {"in_features": 64, "out_features": (rows,)}
    return Node("Linear", (source,), (name,), attributes)


def _mlp(up_input: str = "x", biases: tuple[str, ...] = ()) -> tuple[Node, ...]:
    return (
        _linear("gate", "x", 96, biases),
        Node("Sigmoid", ("gate",), ("share",)),
        _linear("up", up_input, 32),
        Node("Mul", ("share", "up"), ("hidden_out",)),
    )


def _encodings(*of_up: Encoding) -> dict[str, Encoding]:
    gates = {f"layers.{index}.gate.weight": INT4 for index in range(len(of_up))}
    return gates | {f"layers.{index}.up.weight": kind for index, kind in enumerate(of_up)}


def test_products_of_one_input_and_encoding_become_one() -> None:
    (nodes,) = join_products(Model((), (_mlp(),), ()), _encodings(INT4)).blocks

    product, split, *rest = nodes
    assert product.names("weights") == ("gate.weight", "up.weight")
    assert product.integers("out_features") == (96, 32)
    assert product.inputs == ("x",)
    assert (split.operator, split.inputs, split.outputs) == (
        "Split",
        product.outputs,
        ("gate", "up"),
    )
    assert split.integers("sizes") == (96, 32)
    assert [node.operator for node in rest] == ["Sigmoid", "Mul"]


def test_what_differs_stays_apart() -> None:
    biased, elsewhere = _mlp(biases=("gate.bias",)), _mlp("y")
    model = Model((), (_mlp(), biased, elsewhere), ())

    assert join_products(model, _encodings(INT8, INT4, INT4)) == model


def test_blocks_share_nodes_where_their_encodings_agree() -> None:
    nodes = _mlp()

    found = join_products(Model((), (nodes,) * 4, ()), _encodings(INT4, FLOAT, INT4, INT8)).blocks

    assert found[0] is found[2]
    assert found[1] is found[3] is nodes
    assert len(found[0]) == 4

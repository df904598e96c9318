"""Products of one input become one product and a split: gate and up of an MLP.

    x ─ Linear(gate) ─ a            x ─ Linear(gate+up) ─ Split ─ a
    x ─ Linear(up)   ─ b      ──►                               └ b

Requires: `pack_attention` has run. Ensures: every weight keeps its name and encoding, and blocks
that shared their nodes still do where their encodings agree. A decode step quantises the input and
wakes its threads once instead of twice (docs/adr/0023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeshard.compiler.encoding import Encoding
from edgeshard.compiler.semantic import Model, Node, join_linears

Place = tuple[int, ...]  # of the nodes that become one


def join_products(model: Model, encodings: Mapping[str, Encoding]) -> Model:
    """Join what can be joined in every block of a model.

    Args:
        model: as traced.
        encodings: of all matrices, by full name: `layers.7.mlp.up_proj.weight`.
    """
    made: dict[tuple[int, tuple[Place, ...]], tuple[Node, ...]] = {}
    blocks = []
    for index, nodes in enumerate(model.blocks):
        places = tuple(joinable(nodes, encodings, f"layers.{index}."))
        key = (id(nodes), places)
        if key not in made:
            made[key] = tuple(joined(nodes, places)) if places else nodes
        blocks.append(made[key])
    return replace(model, blocks=tuple(blocks))


def joinable(nodes: Sequence[Node], encodings: Mapping[str, Encoding], prefix: str) -> list[Place]:
    """Places of the products without bias that share an input and one encoding."""
    found: dict[tuple[str, Encoding], list[int]] = {}
    for place, node in enumerate(nodes):
        if node.operator != "Linear" or node.names("biases"):
            continue
        kinds = {encodings[prefix + name] for name in node.names("weights")}
        if len(kinds) == 1:
            found.setdefault((node.inputs[0], kinds.pop()), []).append(place)
    return [tuple(places) for places in found.values() if len(places) > 1]


def joined(nodes: Sequence[Node], places: Sequence[Place]) -> list[Node]:
    """The nodes, with each group as one product and a split where its first product was."""
    instead: dict[int, list[Node]] = {}
    for group in places:
        linears = [nodes[place] for place in group]
        outputs = tuple(linear.outputs[0] for linear in linears)
        both = "+".join(outputs)
        sizes = tuple(sum(linear.integers("out_features")) for linear in linears)
        product = Node("Linear", linears[0].inputs, (both,), join_linears(linears))
        instead |= {place: [] for place in group}
        instead[group[0]] = [product, Node("Split", (both,), outputs, {"sizes": sizes})]
    return [new for place, node in enumerate(nodes) for new in instead.get(place, [node])]

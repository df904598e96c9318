"""Which tensors a traced model reads, and whether a checkpoint has these and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.lowering import EMBEDDING, HEAD
from edgeshard.compiler.semantic import Model, Node
from edgeshard.errors import InputError

# Tables that some checkpoints carry along; the model's code makes them anew.
_DERIVED = ("rotary_emb.inv_freq",)
Shapes = dict[str, tuple[int, ...]]


def check_names(checkpoint: Checkpoint, model: Model, *, is_tied: bool) -> None:
    """Compare a checkpoint's tensors with those that the traced model reads.

    Args:
        checkpoint: whose tensors.
        model: as traced.
        is_tied: the head may read the embedding's weights.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    expected = dict(_expected(model))
    found = checkpoint.names()
    if HEAD not in found:
        if not is_tied:
            raise InputError(f"{checkpoint.path} has no {HEAD} and is not tied")
        del expected[HEAD]
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    extra = [weight for weight in extra if not weight.endswith(_DERIVED)]
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has an unknown tensor {extra[0]}"
        raise InputError(f"{checkpoint.path} {what} ({len(missing)} missing, {len(extra)} unknown)")
    for weight, shape in expected.items():
        if checkpoint.shape(weight) != shape:
            raise InputError(
                f"tensor {weight} of {checkpoint.path} is {checkpoint.shape(weight)}, "
                f"its configuration says {shape}"
            )


def _expected(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from weight_shapes(model.embedding, "")
    for index, nodes in enumerate(model.blocks):
        yield from weight_shapes(nodes, f"layers.{index}.")
    yield from weight_shapes(model.head, "")


def weight_shapes(nodes: Sequence[Node], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the nodes read."""
    for node in nodes:
        if node.operator == "Embedding":
            yield prefix + EMBEDDING, (node.integer("rows"), node.integer("columns"))
        elif node.operator in ("RMSNorm", "HeadNorm"):
            yield f"{prefix}{node.text('weight')}.weight", (node.integer("size"),)
        elif node.operator == "Linear":
            rows, columns = node.integers("out_features"), node.integer("in_features")
            for weight, count in zip(node.names("weights"), rows, strict=True):
                yield prefix + weight, (count, columns)
            for bias, count in zip(node.names("biases"), rows, strict=bool(node.names("biases"))):
                yield prefix + bias, (count,)

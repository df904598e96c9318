"""Describe a checkpoint's model with torch and transformers: the only part that needs them."""

from __future__ import annotations

from optimum.utils import NormalizedConfigManager

from edgeshard.compiler.assets import read_text
from edgeshard.compiler.checkpoint import Checkpoint, check_layers
from edgeshard.compiler.description import Description
from edgeshard.compiler.semantic import Model
from edgeshard.compiler.trace import trace_model
from edgeshard.errors import InputError


def describe(checkpoint: Checkpoint) -> Description:
    """Trace the model and read what belongs to its text.

    Raises:
        InputError: the configuration makes no model that we can compile, or a file of the text
            cannot be used.
    """
    check_layers(checkpoint)
    model, tables = trace_model(checkpoint.config)
    _check_sizes(checkpoint, model)
    return Description(
        architecture=str(checkpoint.config.model_type),
        is_tied=bool(checkpoint.config.tie_word_embeddings),
        model=model,
        tables=tables,
        text=read_text(checkpoint),
    )


def _check_sizes(checkpoint: Checkpoint, model: Model) -> None:
    """Compare the traced sizes with the configuration's, for families whose names optimum knows.

    Raises:
        InputError: the model's code made another size than its configuration says.
    """
    try:
        known = NormalizedConfigManager.get_normalized_config_class(checkpoint.config.model_type)
    except KeyError:
        return
    sizes = known(checkpoint.config)
    nodes = [node for part in (model.embedding, *model.kinds) for node in part]
    table = next(node for node in nodes if node.operator == "Embedding")
    traced = {
        "num_layers": {len(model.blocks)},
        "vocab_size": {table.integer("rows")},
        "hidden_size": {table.integer("columns")},
        "num_attention_heads": {n.integer("num_heads") for n in nodes if n.operator == "Attention"},
    }
    for name, found in traced.items():
        if found != {int(getattr(sizes, name))}:
            raise InputError(f"{name} is {getattr(sizes, name)} in the configuration, not {found}")

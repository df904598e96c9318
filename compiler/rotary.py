"""Rotary tables, from the model's own rotary module, and how far they hold.

A table is `cos, sin [positions, rotary_dim / 2]`. Where a scaling depends on the length of the
text, the table covers the lengths for which it does not: longer ones would need other keys in the
cache.

Rule: the same frequencies give the same table on every machine. Cosines in float32 are a matter of
the library; so they are computed in float64 and rounded (docs/adr/0037).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode

from edgeshard.compiler.semantic import SHARED, Tables
from edgeshard.errors import InputError

# Of these, `dynamic` changes beyond max_position_embeddings, where no table reaches, and
# `longrope` beyond original_max_position_embeddings.
SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")


_ROUNDED = {"cos", "sin", "matmul", "__matmul__"}  # of frequencies and positions: the angles


class _RoundOnce(TorchFunctionMode):
    """Has these operators compute in float64 what they give in float32."""

    def __torch_function__(
        self,
        operator: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(operator, "__name__", "") not in _ROUNDED:
            return operator(*args, **(kwargs or {}))
        return operator(*(one.double() for one in args), **(kwargs or {})).float()


def rotary_tables(module: Any, config: transformers.PretrainedConfig) -> dict[str, Tables]:
    """Tables of a model by the kind of block; `default` where all blocks share one.

    Args:
        module: the model's rotary module; another one of its class is made, with real numbers.
        config: of the model.

    Raises:
        InputError: a scaling is not known.
    """
    parameters: dict[str, Any] = config.rope_parameters or {}
    kinds = [kind for kind, value in parameters.items() if isinstance(value, dict)]
    by_kind = {kind: parameters[kind] for kind in kinds} if kinds else {SHARED: parameters}
    used = set(getattr(config, "layer_types", None) or kinds)
    real = type(module)(config=config)
    tables = {}
    positions = context_limit(config)
    for kind, values in by_kind.items():
        scaling = str(values.get("rope_type", "default"))
        if scaling not in SCALINGS:
            known = ", ".join(SCALINGS)
            raise InputError(f"RoPE scaling {scaling!r} is not supported; supported: {known}")
        if kind != SHARED and kind not in used:
            continue
        with torch.no_grad(), _RoundOnce():
            ids = torch.arange(positions)[None]
            options = {} if kind == SHARED else {"layer_type": kind}
            cos, sin = real(torch.empty(1, 1, 1), ids, **options)
        half = cos.shape[-1] // 2
        tables[kind] = Tables(
            np.ascontiguousarray(cos[0, :, :half].numpy()),
            np.ascontiguousarray(sin[0, :, :half].numpy()),
        )
    return tables


def context_limit(config: transformers.PretrainedConfig) -> int:
    """Positions for which the rotary embedding does not depend on the length of the text."""
    limit = int(config.max_position_embeddings)
    parameters: dict[str, Any] = config.rope_parameters or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for values in nested or [parameters]:
        if values.get("rope_type") == "longrope":
            limit = min(limit, int(values["original_max_position_embeddings"]))
    return limit

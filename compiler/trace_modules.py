"""Modules and functions that stand in a traced model and put one semantic node each into the trace.

They take and give tensors of the shapes that the model's own ones do; what they compute is in their
name and attributes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from edgeshard.compiler.semantic import SHARED, Tables
from edgeshard.compiler.trace_nodes import DOMAIN, SEQUENCE
from edgeshard.errors import InputError

# What transformers may hand to an attention function without changing what it computes here.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions"}


class LinearNode(torch.nn.Module):
    """A matrix product, with a bias or without."""

    def __init__(self, name: str, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.attributes = {
            "weight": name,
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": int(linear.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer does."""
        return symbolic("Linear", (x,), self.attributes, (*x.shape[:-1], self.out_features))


class NormNode(torch.nn.Module):
    """A root-mean-square norm."""

    def __init__(self, name: str, size: int, epsilon: float, plus_one: bool) -> None:
        super().__init__()
        self.attributes = {
            "weight": name,
            "size": size,
            "epsilon": epsilon,
            "plus_one": int(plus_one),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the norm does."""
        return symbolic("RMSNorm", (x,), self.attributes, tuple(x.shape))


class TableNodes(torch.nn.Module):
    """Stands for the rotary module; a table is known by its kind, its values come later."""

    def __init__(self, tables: Mapping[str, Tables]) -> None:
        super().__init__()
        self.tables = tables

    def forward(
        self, x: torch.Tensor, position_ids: object = None, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines as the rotary module gives them."""
        table = self.tables[layer_type or SHARED]
        shape = (1, SEQUENCE, 2 * table.cos.shape[1])
        cos, sin = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Table",
            (x,),
            attrs={"kind": layer_type or SHARED},
            dtypes=(x.dtype, x.dtype),
            shapes=(shape, shape),
            version=1,
        )
        return cos, sin


def embedding_node(module: torch.nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
    """Rows of the embedding; stands for `torch.nn.Embedding.forward`."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Embedding",
        (tokens,),
        attrs={"rows": module.num_embeddings, "columns": module.embedding_dim},
        dtype=torch.float32,
        shape=(*tokens.shape, module.embedding_dim),
        version=1,
    )


def symbolic(
    operator: str,
    inputs: tuple[torch.Tensor, ...],
    attributes: dict[str, Any],
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Put one node of our domain into the trace."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}",
        inputs,
        attrs=attributes,
        dtype=inputs[0].dtype,
        shape=shape,
        version=1,
    )


def rotary_node(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for a model's `apply_rotary_pos_emb`."""
    q, k = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::Rotary",
        (q, k, cos, sin),
        attrs={"rotary_dim": cos.shape[-1]},
        dtypes=(q.dtype, k.dtype),
        shapes=(q.shape, k.shape),
        version=1,
    )
    return q, k


def attention_node(
    module: torch.nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: int,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Stands for one of transformers' attention functions; `mask` is a number of `Masks`.

    Raises:
        InputError: an option would change what is computed and is not known here.
    """
    refused = {name for name, value in options.items() if value is not None} - _HARMLESS
    if refused:
        raise InputError(f"attention option {', '.join(sorted(refused))} is not supported yet")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise InputError("attention that looks ahead (is_causal false) is not supported")
    batch, num_heads, sequence, head_dim = q.shape
    attributes = {
        "scale": float(head_dim**-0.5 if scaling is None else scaling),
        "num_heads": num_heads,
        "num_kv_heads": k.shape[1],
        "head_dim": head_dim,
        "mask": mask,
        "window": sliding_window or 0,
        "softcap": float(softcap or 0.0),
    }
    shape = (batch, sequence, num_heads, head_dim)
    return symbolic("Attention", (q, k, v), attributes, shape), None


class Masks:
    """Keeps the functions that make the model's attention masks; a mask is known by its number."""

    def __init__(self) -> None:
        self._functions: list[Callable[..., torch.Tensor]] = []

    def take(self, *, mask_function: Callable[..., torch.Tensor], **_: object) -> int:
        """Stands for a function that makes a mask."""
        self._functions.append(mask_function)
        return len(self._functions) - 1

    def windows(self, length: int) -> list[int]:
        """Positions that each mask lets a query see, itself among them; 0: all before it.

        Raises:
            InputError: a mask is neither causal nor a sliding window.
        """
        found = []
        zero, keys = torch.tensor(0), torch.arange(length)
        for function in self._functions:
            rows = {
                query: function(zero, zero, torch.tensor(query), keys).expand(length)
                for query in (0, length // 2, length - 1)
            }
            window = int(rows[length - 1].sum())
            for query, seen in rows.items():
                if not torch.equal(seen, (keys <= query) & (keys > query - window)):
                    raise InputError("an attention mask that is no sliding window is not supported")
            found.append(0 if window == length else window)
        return found

"""Trace a decoder block of transformers into semantic operators, with no weight in memory.

    Hugging Face block ──fake tensors, torch.export──► nodes of the domain `edgeshard`:

    RMSNorm(x)            weight, epsilon
    Linear(x)             weight, bias, in_features, out_features
    Rotary(q, k)          position encoding of queries and keys `[B, H, S, D]`
    Attention(q, k, v)    causal, with the KV cache; scale, num_heads, num_kv_heads, head_dim
    and standard element-wise operators between them

Correctness comes from the model's own code; how an operator runs is a target's business. Axes:
B batch, S new positions, H heads, D channels of a head.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import onnx
import torch
import transformers
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeshard.compiler.semantic import Node, Value
from edgeshard.errors import InputError

DOMAIN = "edgeshard"
ATTENTION = "edgeshard_semantic"
# Sizes that no model has: they mark the batch and sequence axes in the traced constants.
BATCH, SEQUENCE = 1009, 1013
# What transformers may hand to an attention function without changing what it computes here.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class _Linear(torch.nn.Module):
    def __init__(self, name: str, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.attributes: dict[str, str | int] = {
            "weight": name,
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": int(linear.bias is not None),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _symbolic("Linear", (x,), self.attributes, (*x.shape[:-1], self.out_features))

    @property
    def out_features(self) -> int:
        return int(self.attributes["out_features"])


class _Norm(torch.nn.Module):
    def __init__(self, name: str, epsilon: float) -> None:
        super().__init__()
        self.attributes = {"weight": name, "epsilon": epsilon}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _symbolic("RMSNorm", (x,), self.attributes, tuple(x.shape))


def _symbolic(
    operator: str,
    inputs: tuple[torch.Tensor, ...],
    attributes: dict[str, Any],
    shape: tuple[int, ...],
) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}",
        inputs,
        attrs=attributes,
        dtype=inputs[0].dtype,
        shape=shape,
        version=1,
    )


def _rotary(
    q: torch.Tensor, k: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes, dtypes = (q.shape, k.shape), (q.dtype, k.dtype)
    q, k = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::Rotary", (q, k), attrs={}, dtypes=dtypes, shapes=shapes, version=1
    )
    return q, k


def _attention(
    module: torch.nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    del module, mask, dropout
    refused = {name for name, value in options.items() if value is not None} - _HARMLESS
    if refused:
        raise InputError(f"attention option {', '.join(sorted(refused))} is not supported yet")
    batch, num_heads, sequence, head_dim = q.shape
    attributes = {
        "scale": float(scaling),
        "num_heads": num_heads,
        "num_kv_heads": k.shape[1],
        "head_dim": head_dim,
    }
    shape = (batch, sequence, num_heads, head_dim)
    return _symbolic("Attention", (q, k, v), attributes, shape), None


class _Block(torch.nn.Module):
    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # Rotary is semantic: the position embeddings that the block passes on are never read.
        output = self.block(hidden, position_embeddings=(hidden, hidden), past_key_values=None)
        return output if isinstance(output, torch.Tensor) else output[0]


def _replace_modules(block: torch.nn.Module) -> None:
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear):
            block.set_submodule(name, _Linear(name, module))
        elif type(module).__name__.endswith("RMSNorm"):
            block.set_submodule(name, _Norm(name, float(module.variance_epsilon)))


@contextlib.contextmanager
def _semantic_functions(block: torch.nn.Module) -> Iterator[None]:
    """Put our rotary function in place of the one that the block's module looks up."""
    home: Any = sys.modules[type(block).__module__]
    original = home.apply_rotary_pos_emb
    home.apply_rotary_pos_emb = _rotary
    try:
        yield
    finally:
        home.apply_rotary_pos_emb = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter from a person's terminal; errors are exceptions anyway."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def trace_block(config: transformers.PretrainedConfig) -> list[Node]:
    """Trace one decoder block of the model that `config` describes.

    Args:
        config: of a supported family; its number of layers does not matter.

    Returns:
        Semantic nodes in topological order. The first reads `hidden`, the last writes `hidden_out`;
        in shapes, 0 stands for an axis as in the input.

    Raises:
        InputError: the block uses something that no target can lower yet; it is named.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    config._attn_implementation = ATTENTION
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        model = transformers.AutoModelForCausalLM.from_config(config)
        block = model.model.layers[0].eval()
        with _semantic_functions(block):
            _replace_modules(block)
            hidden = torch.empty(BATCH, SEQUENCE, config.hidden_size)
            program = torch.onnx.export(
                _Block(block).eval(), (hidden,), dynamo=True, optimize=False, verbose=False
            )
    if program is None:
        raise InputError("torch.onnx.export gave no program; check the versions of torch and onnx")
    return _clean(program.model_proto.graph)


def _clean(graph: onnx.GraphProto) -> list[Node]:
    """Turn the traced nodes into semantic ones: shapes become attributes, identities vanish."""
    names = {graph.input[0].name: "hidden", graph.output[0].name: "hidden_out"}
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Constant":
            value = attributes.get("value_ints", attributes.get("value_int"))
            if value is None:
                value = onnx.numpy_helper.to_array(attributes["value"])
            shapes[node.output[0]] = numpy.atleast_1d(value)
        elif node.op_type == "Concat" and all(name in shapes for name in node.input):
            shapes[node.output[0]] = numpy.concatenate([shapes[name] for name in node.input])
        elif node.op_type == "Identity":
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            nodes.append(_semantic_node(node, attributes, names, shapes))
    return nodes


def _semantic_node(
    node: onnx.NodeProto,
    attributes: dict[str, Any],
    names: dict[str, str],
    shapes: dict[str, NDArray[Any]],
) -> Node:
    inputs = tuple(names.get(name, name) for name in node.input)
    outputs = tuple(names.get(name, name) for name in node.output)
    if node.op_type == "Reshape":
        shape = tuple(0 if i in (BATCH, SEQUENCE) else int(i) for i in shapes[node.input[1]])
        return Node("Reshape", inputs[:1], outputs, {"shape": shape})
    if node.op_type == "Linear":
        weight = attributes["weight"].decode()
        linear: dict[str, Value] = {
            "weights": (f"{weight}.weight",),
            "biases": (f"{weight}.bias",) if attributes["bias"] else (),
            "in_features": attributes["in_features"],
            "out_features": (attributes["out_features"],),
        }
        return Node("Linear", inputs, outputs, linear)
    plain = {
        key: value.decode()
        if isinstance(value, bytes)
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in attributes.items()
    }
    unknown = sorted(set(inputs) & set(shapes))
    if unknown:
        raise InputError(f"operator {node.op_type} with a constant operand is not supported yet")
    return Node(node.op_type, inputs, outputs, plain)

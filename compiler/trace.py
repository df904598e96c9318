"""Trace a causal language model of transformers into semantic operators, with no weight in memory.

    whole model, fake tensors, torch.export ──► nodes of the domain `edgeshard`:

    Embedding(tokens)            weight
    RMSNorm(x)                   weight, epsilon, size, plus_one
    Linear(x)                    weight, bias, in_features, out_features
    Table()                      cosines and sines of the positions; kind
    Rotary(q, k, cos, sin)       position encoding of queries and keys `[B, H, S, D]`
    Attention(q, k, v)           causal, with the KV cache; scale, window, softcap and head counts
    Enter(x), Leave(x)           the borders of a decoder block; block
    and standard element-wise operators between them

Every distinct kind of block is traced once; its repetitions hand their input on and are compared
with the one that was traced. Correctness comes from the model's own code; how an operator runs is a
target's business. Axes: B batch, S new positions, H heads, D channels of a head.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeshard.compiler.module_check import check_rotary, norm_kind
from edgeshard.compiler.rotary import rotary_tables
from edgeshard.compiler.semantic import Model, Tables
from edgeshard.compiler.trace_modules import (
    LinearNode,
    Masks,
    NormNode,
    TableNodes,
    attention_node,
    embedding_node,
    rotary_node,
    symbolic,
)
from edgeshard.compiler.trace_nodes import BATCH, SEQUENCE, split_model
from edgeshard.errors import InputError

ATTENTION = "edgeshard_semantic"
# Settings that say nothing about the function, so that a model is traced once for several targets.
_NO_FUNCTION = {"_name_or_path", "transformers_version", "dtype", "architectures"}
_PLAIN = (bool, int, float, str, type(None))


def trace_model(config: transformers.PretrainedConfig) -> tuple[Model, dict[str, Tables]]:
    """Trace the model that `config` describes.

    Args:
        config: of a supported family.

    Returns:
        The semantic model, and the rotary tables that its blocks name.

    Raises:
        InputError: the model uses something that no target can lower yet; it is named.
    """
    plain = {key: value for key, value in config.to_dict().items() if key not in _NO_FUNCTION}
    return _trace(_Configuration(json.dumps(plain, sort_keys=True, default=str), config))


@dataclass(frozen=True)
class _Configuration:
    """A configuration, equal to others that describe the same function."""

    text: str
    value: transformers.PretrainedConfig = field(compare=False)


@functools.lru_cache(maxsize=4)
def _trace(configuration: _Configuration) -> tuple[Model, dict[str, Tables]]:
    config = copy.deepcopy(configuration.value)
    config._attn_implementation = ATTENTION
    config.use_cache = False
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention_node)
    masks = Masks()
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, masks.take)
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        model = _build(config)
    tables = rotary_tables(model.model.rotary_emb, config)
    epsilons = _norm_kinds(model)
    blocks = _Blocks(list(model.model.layers))
    partial = _is_partial(config, tables)
    with _quiet(), _semantic_functions(model, partial), FakeTensorMode(allow_non_fake_inputs=True):
        _replace_modules(model, epsilons, tables)
        tokens = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
        graph = _export(_Whole(model).eval(), tokens)
    blocks.compare()
    return split_model(graph, blocks.kinds, masks.windows(config.max_position_embeddings)), tables


def _build(config: transformers.PretrainedConfig) -> Any:
    try:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"the configuration makes no model: {line}") from error


def _export(model: torch.nn.Module, tokens: torch.Tensor) -> onnx.GraphProto:
    try:
        program = torch.onnx.export(model, (tokens,), dynamo=True, optimize=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__
        raise InputError(f"this model cannot be traced: {str(error.__cause__)[:200]}") from error
    assert program is not None
    return program.model_proto.graph


class _Whole(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # With a mask at hand transformers does not look for several texts packed into one.
        seen = torch.ones_like(tokens)
        output = self.model(input_ids=tokens, attention_mask=seen, use_cache=False)
        logits: torch.Tensor = output.logits
        return logits


# Putting them in place


class _Blocks:
    """The decoder blocks: which ones are of one kind, and that the model treats these alike.

    Attributes:
        kinds: for each block, the index of the first one of its kind.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._received: dict[int, tuple[object, ...]] = {}
        first: dict[tuple[object, ...], int] = {}
        self.kinds = [
            first.setdefault(_fingerprint(layer), index) for index, layer in enumerate(layers)
        ]
        for index, layer in enumerate(layers):
            layer.forward = self._forward(index, layer.forward)

    def _forward(self, index: int, forward: Callable[..., Any]) -> Callable[..., torch.Tensor]:
        traced = self.kinds[index] == index

        def run(hidden: torch.Tensor, *positional: object, **options: Any) -> torch.Tensor:
            self._received[index] = _received(positional, options)
            if not traced:
                return hidden
            hidden = symbolic("Enter", (hidden,), {"block": index}, tuple(hidden.shape))
            result = forward(hidden, *positional, **options)
            if not isinstance(result, torch.Tensor):
                raise InputError("a block that gives more than hidden states is not supported")
            return symbolic("Leave", (result,), {"block": index}, tuple(result.shape))

        return run

    def compare(self) -> None:
        """Refuse blocks that look alike but are called differently.

        Raises:
            InputError: names the two.
        """
        for index, kind in enumerate(self.kinds):
            if self._received.get(index) != self._received.get(kind):
                raise InputError(f"blocks {kind} and {index} look alike but get other positions")


def _received(positional: tuple[object, ...], options: dict[str, Any]) -> tuple[object, ...]:
    """What the model hands to a block, as far as it decides what the block computes."""
    rotary = options.get("position_embeddings")
    table = None if rotary is None else id(rotary[0])
    return (len(positional), options.get("attention_mask"), table, sorted(options))


def _fingerprint(block: torch.nn.Module) -> tuple[object, ...]:
    """Equal for blocks that compute the same function of their weights and input."""
    parts: list[object] = []
    for name, module in block.named_modules():
        plain = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, _PLAIN) and key != "layer_idx"
        )
        shapes = tuple((key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False))
        parts.append((name, type(module), plain, shapes))
    return tuple(parts)


def _norm_kinds(model: torch.nn.Module) -> dict[str, tuple[float, bool]]:
    """Epsilon of every norm, and whether its weight counts from one."""
    known: dict[tuple[type, float], tuple[float, bool]] = {}
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
            key = (type(module), epsilon)
            if key not in known:
                known[key] = (epsilon, norm_kind(type(module), epsilon))
            found[name] = known[key]
    return found


def _replace_modules(
    model: Any, norms: Mapping[str, tuple[float, bool]], tables: Mapping[str, Tables]
) -> None:
    for name, module in list(model.named_modules()):
        local = _local_name(name)
        if isinstance(module, torch.nn.Linear):
            model.set_submodule(name, LinearNode(local, module))
        elif name in norms:
            model.set_submodule(name, NormNode(local, module.weight.shape[0], *norms[name]))
        elif isinstance(module, torch.nn.Embedding):
            scale = getattr(module, "scalar_embed_scale", None)
            if scale is not None:
                with unset_fake_temporarily():
                    module.embed_scale = torch.tensor(scale)
    model.model.rotary_emb = TableNodes(tables)


def _is_partial(config: Any, tables: Mapping[str, Tables]) -> bool:
    """Whether some blocks turn the first channels of a head only."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return any(2 * table.cos.shape[1] < head_dim for table in tables.values())


def _local_name(name: str) -> str:
    """A module's name within its block, or within the model: what a checkpoint calls it."""
    plain = name.removeprefix("model.")
    return plain.split(".", 2)[2] if plain.startswith("layers.") and plain.count(".") > 1 else plain


@contextlib.contextmanager
def _semantic_functions(model: Any, partial: bool) -> Iterator[None]:
    """Put our functions in place of those that the model's code looks up."""
    home: Any = sys.modules[type(model).__module__]
    original, embedding = home.apply_rotary_pos_emb, torch.nn.Embedding.forward
    check_rotary(original, partial)
    home.apply_rotary_pos_emb = rotary_node
    torch.nn.Embedding.forward = embedding_node  # type: ignore[assignment]  # for this trace only
    try:
        yield
    finally:
        home.apply_rotary_pos_emb = original
        torch.nn.Embedding.forward = embedding  # type: ignore[method-assign]


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

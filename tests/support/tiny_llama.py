"""Tiny random Llama checkpoints, what they compile to, and a chain of shards in this process.

Weights are drawn wide (0.3), so that the likeliest token leads clearly and greedy decoding has no
near ties (a test holds that for the reference alone); norms and biases are drawn too, so that a
forgotten one shows.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.cache_ranges import show_cache
from edgeshard.compiler.cache_scales import ShowCache
from edgeshard.compiler.compile import compile_model
from edgeshard.runtime.session import ShardSession
from edgeshard.runtime.states import decode_states, encode_states
from edgeshard.schemas.common import Activation, Blob, Precision, Target
from edgeshard.schemas.model import ModelManifest

NUM_BLOCKS = 3
VOCAB = 128
CONTEXT = 256
VARIANTS: dict[str, dict[str, Any]] = {
    "multi_head": {"heads": 4, "kv_heads": 4, "tied": False, "base": 10_000.0},
    "grouped": {"heads": 4, "kv_heads": 2, "tied": True, "base": 100_000.0},
    "three_heads": {"heads": 3, "kv_heads": 1, "tied": True, "base": 10_000.0, "seed": 1},
    "nine_heads": {"heads": 9, "kv_heads": 3, "tied": False, "base": 500_000.0},
    "llama3_scaling": {"heads": 4, "kv_heads": 1, "tied": True, "base": 500_000.0, "llama3": True},
    "biased": {
        "heads": 4,
        "kv_heads": 2,
        "tied": False,
        "base": 10_000.0,
        "biased": True,
        "seed": 1,
    },
}
PROMPTS = ([7], [3, 99], [11, 5, 64, 127, 1], list(range(20, 37)), list(range(100, 40, -1)))


def config(variant: str) -> transformers.LlamaConfig:
    """The configuration of a variant."""
    choice = VARIANTS[variant]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": choice["base"]}
    if choice.get("llama3"):
        rope |= {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    return transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16 * choice["heads"],
        intermediate_size=96,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=choice["heads"],
        num_key_value_heads=choice["kv_heads"],
        head_dim=16,
        max_position_embeddings=CONTEXT,
        rope_parameters=rope,
        tie_word_embeddings=choice["tied"],
        attention_bias=choice.get("biased", False),
        mlp_bias=choice.get("biased", False),
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


@cache
def reference(variant: str) -> transformers.PreTrainedModel:
    """The variant as transformers' own fp32 model."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(VARIANTS[variant].get("seed", 0))
        model = transformers.AutoModelForCausalLM.from_config(
            config(variant), attn_implementation="eager", dtype=torch.float32
        ).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                drawn = torch.randn_like(parameter) * 0.3
                parameter.copy_(drawn if name.endswith("bias") else 1 + drawn)
    return model


def save(variant: str, folder: Path) -> Path:
    """Write the variant as a Hugging Face folder."""
    reference(variant).save_pretrained(folder, safe_serialization=True)
    return folder


def save_worded(place: Path) -> Path:
    """Write the grouped variant with a tokenizer that knows single characters."""
    shutil.copytree(folder("grouped"), place)
    tokenizer = Tokenizer(models.WordLevel({chr(i): i for i in range(VOCAB)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return place


@cache
def home() -> Path:
    """A folder that lasts as long as the test run."""
    home = Path(tempfile.mkdtemp(prefix="edgeshard-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@cache
def folder(variant: str) -> Path:
    """The variant's Hugging Face folder, made once in a test run; not to be changed."""
    return save(variant, home() / "checkpoints" / variant)


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model and where it lies."""

    store: Store
    manifest: ModelManifest
    blob: Blob

    def chain(
        self,
        *cuts: int,
        slots: int = 1,
        context: int = CONTEXT,
        threads: int = 1,
        links: Sequence[Activation] = (),
        models: Sequence[CompiledModel] = (),
    ) -> Chain:
        """Its shards, cut before the units `cuts`; `links` round hidden states between them.

        Each stage is of one of `models`, where they are given.
        """
        each = models or (self,) * (len(cuts) + 1)
        return Chain(each, cuts, links, slots=slots, context=context, threads=threads)


@cache
def compiled(
    variant: str, precision: Precision = "fp32", target: Target = "ort", *, int8_cache: bool = False
) -> CompiledModel:
    """The variant compiled, once in a test run; not to be changed."""
    store = Store(home() / f"{variant}-{precision}-{target}{'-kv-int8' if int8_cache else ''}")
    show = shower(store) if int8_cache else None
    result = compile_model(
        folder(variant), store, precision=precision, target=target, show_cache=show
    )
    return CompiledModel(store, result.manifest, result.blob)


def shower(store: Store) -> ShowCache:
    """Shows keys and values on random tokens."""
    prompts = np.random.default_rng(5).integers(0, VOCAB, (4, 1, 64))
    return lambda model: show_cache(store, model, list(prompts))


class Chain(AbstractContextManager["Chain"]):
    """Shards behind each other: what one gives, the next one takes."""

    def __init__(
        self,
        models: Sequence[CompiledModel],
        cuts: Sequence[int],
        links: Sequence[Activation],
        *,
        slots: int,
        context: int,
        threads: int,
    ) -> None:
        self._links = links or ("fp32",) * len(cuts)
        ends = [0, *cuts, len(models[0].manifest.units)]
        self.shards = []
        for model, (start, stop) in zip(models, pairwise(ends), strict=True):
            shard, _ = fuse(model.store, model.manifest, model.blob, start, stop)
            self.shards.append(
                ShardSession.open(model.store, shard, threads=threads, context=context, slots=slots)
            )

    def step(
        self,
        positions: int | Sequence[int],
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        slot: int = 0,
        every_position: bool = False,
    ) -> NDArray[np.float32]:
        """Logits `[B, vocab]` after a step of one row, or of several rows of equal length."""
        values: NDArray[Any] = np.array(tokens, np.int64, ndmin=2)
        places = [positions] if isinstance(positions, int) else positions
        for session, link in zip(self.shards, (*self._links, "fp32"), strict=True):
            values = session.run(slot, places, values, every_position=every_position).copy()
            if link != "fp32":
                values = decode_states(encode_states(values, link).payload, link, *values.shape)
        return values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a slot to another one, in every shard."""
        for session in self.shards:
            session.copy(source, target, length)

    def greedy(self, prompt: Sequence[int], num_tokens: int, *, slot: int = 0) -> list[int]:
        """Greedy tokens: the prompt in one step, then a token at a time."""
        found: list[int] = []
        position, tokens = 0, list(prompt)
        for _ in range(num_tokens):
            logits = self.step(position, tokens, slot=slot)
            position += len(tokens)
            tokens = [int(logits[0].argmax())]
            found += tokens
        return found

    def close(self) -> None:
        """Let go of the sessions."""
        for session in self.shards:
            session.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def generated(
    model: transformers.PreTrainedModel, prompt: Sequence[int], num_tokens: int
) -> list[int]:
    """Greedy tokens of transformers' own `generate`."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token) for token in output[0, len(prompt) :]]

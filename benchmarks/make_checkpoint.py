"""Write a random checkpoint of a Llama 2 size: float16 safetensors in several files, with an index.

Weights are normal, scaled so that activations keep their size from block to block and logits
spread over several units, as in a trained model; the text that comes out means nothing. Values are
taken from a pool at random places, so that 13.5 GB are written about as fast as the disk takes
them. A byte-level tokenizer with made-up longer words goes along, so that the artifact runs.

Example:
    python benchmarks/make_checkpoint.py --size 7b --out build/llama2-7b
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 32000
CONTEXT = 4096
POOL_VALUES = 2**24
CHUNK_VALUES = 2**20
FILE_BYTES = 2 * 10**9
SPECIAL = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int


SIZES = {
    "7b": Size(4096, 11008, 32, 32, 32),
    "13b": Size(5120, 13824, 40, 40, 40),
    "70b": Size(8192, 28672, 80, 64, 8),
    "tiny": Size(256, 704, 4, 4, 4),
}


def tensors(size: Size, num_layers: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and standard deviation of every tensor; 0 stands for a norm near one."""
    hidden, inner = size.hidden_size, size.intermediate_size
    kv = hidden // size.num_heads * size.num_kv_heads
    # A block adds two terms to the residual stream; all together add as much as the embedding has.
    added = 1 / math.sqrt(2 * num_layers)
    yield "model.embed_tokens.weight", (VOCAB_SIZE, hidden), 1.0
    for index in range(num_layers):
        prefix = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,), 0.0
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden), 1 / math.sqrt(hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, hidden), added / math.sqrt(hidden)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (inner, hidden), 1 / math.sqrt(hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner), added / math.sqrt(inner)
    yield "model.norm.weight", (hidden,), 0.0
    yield "lm_head.weight", (VOCAB_SIZE, hidden), 4 / math.sqrt(hidden)


class Pools:
    """Normal float16 values of several standard deviations, cut at random places."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._normal = self._generator.standard_normal(POOL_VALUES, np.float32)
        self._scaled: dict[float, NDArray[np.float16]] = {}

    def chunks(self, count: int, deviation: float) -> Iterator[NDArray[np.float16]]:
        """`count` values, some at a time."""
        if deviation not in self._scaled:
            values = self._normal * np.float32(deviation) if deviation else 1 + self._normal * 0.1
            self._scaled[deviation] = values.astype(np.float16)
        pool = self._scaled[deviation]
        for done in range(0, count, CHUNK_VALUES):
            start = int(self._generator.integers(0, POOL_VALUES - CHUNK_VALUES))
            yield pool[start : start + min(CHUNK_VALUES, count - done)]


def write_file(path: Path, group: list[tuple[str, tuple[int, ...], float]], pools: Pools) -> None:
    """Write one safetensors file."""
    header, offset = {}, 0
    for name, shape, _ in group:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, deviation in group:
            for chunk in pools.chunks(math.prod(shape), deviation):
                file.write(chunk.data)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer whose ids beyond the bytes are made-up words."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"Ġw{index}" for index in range(len(words), VOCAB_SIZE)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")


def write_config(folder: Path, size: Size, num_layers: int) -> None:
    """Write what transformers needs to know."""
    plain = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_kv_heads,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")


def make_checkpoint(folder: Path, size: Size, num_layers: int, seed: int = 0) -> int:
    """Write a whole checkpoint and return its bytes of weights."""
    folder.mkdir(parents=True)
    groups: list[list[tuple[str, tuple[int, ...], float]]] = [[]]
    held = total = 0
    for tensor in tensors(size, num_layers):
        num_bytes = 2 * math.prod(tensor[1])
        if groups[-1] and held + num_bytes > FILE_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += num_bytes
        total += num_bytes
    pools = Pools(seed)
    places = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_file(folder / name, group, pools)
        places.update({tensor: name for tensor, _, _ in group})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    write_config(folder, size, num_layers)
    write_tokenizer(folder)
    return total


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Write a random Llama 2-shaped checkpoint.")
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the size has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    layers = arguments.layers or size.num_layers
    written = make_checkpoint(arguments.out, size, layers, arguments.seed)
    print(f"{arguments.out}: {layers} layers, {written / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

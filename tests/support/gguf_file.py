"""A tiny GGUF file, written with the `gguf` package as llama.cpp's converter lays it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, NUM_BLOCKS = 64, 4, 2, 16, 96, 128, 2
# Block 0 mixes types within one packed projection, block 1 is Q4_0 throughout but for one product.
MIXED: dict[str, Kind] = {
    "token_embd.weight": Kind.Q8_0,
    "blk.0.attn_q.weight": Kind.Q4_1,
    "blk.0.attn_k.weight": Kind.Q4_1,
    "blk.0.attn_v.weight": Kind.Q8_0,
    "blk.0.attn_output.weight": Kind.Q4_1,
    "blk.0.ffn_gate.weight": Kind.F16,
    "blk.0.ffn_up.weight": Kind.F32,
    "blk.0.ffn_down.weight": Kind.Q4_1,
    "blk.1.attn_output.weight": Kind.Q8_0,
}


@dataclass(frozen=True)
class GgufFile:
    """The file, and the floats that the `gguf` package reads from it, by GGUF name."""

    path: Path
    floats: dict[str, NDArray[np.float32]]


def shapes(vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors; the output is tied to the embedding."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for index in range(NUM_BLOCKS):
        block = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        found |= {f"blk.{index}.{name}.weight": shape for name, shape in block.items()}
    return found


def write_gguf(
    path: Path,
    kinds: Mapping[str, Kind] = MIXED,
    *,
    architecture: str = "llama",
    without: str = "",
    extra: str = "",
    vocab: int = VOCAB,
    more: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> GgufFile:
    """Write a file with random weights.

    Args:
        path: of the file.
        kinds: type of a tensor; matrices not named are Q4_0, vectors are F32.
        architecture: what the file calls itself.
        without: a tensor to leave out.
        extra: a vector to add.
        vocab: rows of the embedding.
        more: adds what a test wants to see in the metadata besides.
    """
    generator = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(NUM_BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    more(writer)
    floats = {}
    wanted = {name: shape for name, shape in shapes(vocab).items() if name != without}
    if extra:
        wanted[extra] = (HIDDEN,)
    for name, shape in wanted.items():
        kind = kinds.get(name, Kind.F32 if len(shape) == 1 else Kind.Q4_0)
        values = generator.standard_normal(shape, np.float32) * np.float32(0.3)
        data = gguf.quantize(values, kind)
        floats[name] = np.asarray(gguf.dequantize(data, kind), np.float32)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path, floats)

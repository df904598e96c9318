"""GGUF files, read through the `gguf` package and transformers' own mapping of their metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import transformers
from numpy.typing import NDArray
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edgeshard.compiler.checkpoint import check_architecture
from edgeshard.compiler.stored import read_rows, widen
from edgeshard.errors import InputError

_ENDS = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufCheckpoint:
    """A GGUF file of the Llama architecture."""

    kind: Literal["gguf"] = "gguf"

    def __init__(self, path: Path) -> None:
        """Open a file; its tensors stay on disk.

        Raises:
            InputError: truncated, not GGUF, or of an unsupported architecture.
        """
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # the reader raises whatever a broken header leads it to
            raise InputError(f"{path} is not a whole GGUF file: {error}; fetch it again") from error
        end = max((int(t.data_offset) + int(t.n_bytes) for t in self._reader.tensors), default=0)
        if path.stat().st_size < end:
            raise InputError(
                f"{path} is truncated: {path.stat().st_size} bytes of {end}; fetch it again"
            )
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise InputError(
                f"GGUF architecture {architecture!r} is not supported; supported: llama (which "
                "Mistral and SmolLM2 call themselves, too); give the Hugging Face folder"
            )
        loaded = load_gguf_checkpoint(path, return_tensors=False)["config"]
        self.config: transformers.PretrainedConfig = transformers.AutoConfig.for_model(**loaded)
        check_architecture(self.config.model_type, self.config)
        self._tensors = {_translate(t.name): t for t in self._reader.tensors}

    def _field(self, name: str) -> str:
        field = self._reader.fields.get(name)
        if field is None:
            raise InputError(f"{self.path} has no field {name}; fetch it again")
        return str(field.contents())

    def files(self) -> list[Path]:
        """See `Checkpoint.files`."""
        return [self.path]

    def digest(self) -> str:
        """See `Checkpoint.digest`."""
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def names(self) -> set[str]:
        """See `Checkpoint.names`."""
        return set(self._tensors)

    def stored_type(self, name: str) -> str:
        """See `Checkpoint.stored_type`."""
        return str(self._tensors[name].tensor_type.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint.shape`."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def floats(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.floats`."""
        rows = np.concatenate(list(self.pieces(name)))
        return widen(rows, self.stored_type(name)).reshape(self.shape(name))

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """See `Checkpoint.pieces`."""
        tensor, num_rows = self._tensors[name], self.shape(name)[0]
        row_bytes, offset = int(tensor.n_bytes) // num_rows, int(tensor.data_offset)
        heads = self._interleaved_heads(name)
        if heads is None:
            yield from read_rows(self.path, offset, num_rows, row_bytes)
            return
        head_rows = num_rows // heads
        for piece in read_rows(self.path, offset, num_rows, row_bytes, multiple=head_rows):
            pairs = piece.reshape(-1, head_rows // 2, 2, row_bytes)
            yield np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(piece.shape)

    def _interleaved_heads(self, name: str) -> int | None:
        """Heads of a matrix in whose rows llama.cpp interleaves rotary pairs; None: it does not."""
        if name.endswith("q_proj.weight"):
            return int(self.config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return int(self.config.num_key_value_heads)
        return None

    def tokenizer(self) -> transformers.PreTrainedTokenizerBase | None:
        """See `Checkpoint.tokenizer`."""
        if "tokenizer.ggml.model" not in self._reader.fields:
            return None
        return transformers.AutoTokenizer.from_pretrained(
            self.path.parent, gguf_file=self.path.name
        )


def _translate(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK:
        return f"layers.{parts[1]}.{_BLOCK[parts[2]]}.{parts[3]}"
    raise InputError(
        f"GGUF tensor {name!r} has no place in a Llama block; use the Hugging Face folder instead"
    )

"""GGUF files, read through the `gguf` package; how families differ is in `gguf_families`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.checkpoint import check_architecture
from edgeshard.compiler.generation import FIELDS, Defaults, fields_generation
from edgeshard.compiler.gguf_families import (
    FREQUENCIES,
    GGUF_FAMILIES,
    LONG,
    SHORT,
    GgufFamily,
    Settings,
    settings,
    tensor_names,
)
from edgeshard.compiler.stored import hash_file, ignore, read_rows, widen
from edgeshard.errors import InputError

if TYPE_CHECKING:
    import transformers

_TOKENS = {"bos": "bos_token_id", "padding": "pad_token_id"}
_ENDS = ("eos", "eot", "eom")  # of the text, of a turn, of a message


class _Reader(gguf.GGUFReader):
    """The package's reader, over a plain array of the mapped file.

    It takes two slices for each string of a vocabulary, and a slice of a memory map costs several
    times as much as one of an array.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Keep the map that the package sets as an array of the same bytes."""
        plain = value.view(np.ndarray) if isinstance(value, np.memmap) else value
        super().__setattr__(name, plain)


class GgufCheckpoint:
    """A GGUF file of one of `GGUF_FAMILIES`."""

    kind: Literal["gguf"] = "gguf"

    def __init__(self, path: Path) -> None:
        """Open a file; its tensors stay on disk.

        Raises:
            InputError: truncated, not GGUF, or of an unsupported architecture.
        """
        self.path = path
        try:
            self._reader = _Reader(path)
        except Exception as error:  # the reader raises whatever a broken header leads it to
            raise InputError(f"{path} is not a whole GGUF file: {error}; fetch it again") from error
        end = max((int(t.data_offset) + int(t.n_bytes) for t in self._reader.tensors), default=0)
        if path.stat().st_size < end:
            raise InputError(
                f"{path} is truncated: {path.stat().st_size} bytes of {end}; fetch it again"
            )
        self._family = self._known_family()
        self._settings = self._read_settings()
        names = tensor_names(self.architecture, self._settings["num_hidden_layers"])
        self._tensors = {
            self._translate(t.name, names): t
            for t in self._reader.tensors
            if t.name not in (FREQUENCIES, LONG, SHORT)
        }

    def _known_family(self) -> GgufFamily:
        self.architecture = str(self._value("general.architecture"))
        if self.architecture not in GGUF_FAMILIES:
            known = ", ".join(GGUF_FAMILIES)
            raise InputError(
                f"GGUF architecture {self.architecture!r} is not supported; supported: {known} "
                "(Mistral and SmolLM2 call themselves llama); give the Hugging Face folder"
            )
        return GGUF_FAMILIES[self.architecture]

    def _read_settings(self) -> Settings:
        prefix = f"{self.architecture}."
        fields = [name for name in self._reader.fields if name.startswith(prefix)]
        metadata = {name.removeprefix(prefix): self._value(name) for name in fields}
        tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        factors = {
            name: [float(value) for value in tensors[name].data]
            for name in (FREQUENCIES, LONG, SHORT)
            if name in tensors
        }
        found = settings(self.architecture, metadata, factors)
        if "token_embd.weight" not in tensors:
            raise InputError(f"{self.path} has no tensor token_embd.weight; fetch it again")
        if found["num_hidden_layers"] > len(tensors):
            raise InputError(
                f"{self.path} says that it has {found['num_hidden_layers']} blocks, but has "
                f"{len(tensors)} tensors; fetch it again"
            )
        found["vocab_size"] = int(tensors["token_embd.weight"].shape[-1])
        found["tie_word_embeddings"] = "output.weight" not in tensors
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
        known = {name: f"tokenizer.ggml.{name}_token_id" for name in (*_TOKENS, *_ENDS)}
        ids = {n: self._value(key) for n, key in known.items() if key in self._reader.fields}
        found |= {name: ids.get(token) for token, name in _TOKENS.items()}
        ends = list(dict.fromkeys(ids[name] for name in _ENDS if name in ids))
        found["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)
        return found

    @cached_property
    def config(self) -> transformers.PretrainedConfig:
        """See `Checkpoint.config`.

        Raises:
            InputError: transformers does not take it, or the architecture is not supported.
        """
        import transformers

        try:
            config = transformers.AutoConfig.for_model(self._family.model_type, **self._settings)
        except Exception as error:  # whatever transformers' own checks raise
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path} makes no configuration: {line}") from error
        check_architecture(config.model_type, config)
        return config

    def _value(self, name: str) -> Any:
        field = self._reader.fields.get(name)
        if field is None:
            raise InputError(f"{self.path} has no field {name}; fetch it again")
        return field.contents()

    def _translate(self, name: str, names: Mapping[str, str]) -> str:
        module, _, suffix = name.rpartition(".")
        if module not in names:
            raise InputError(
                f"GGUF tensor {name!r} has no place in a model of {self.architecture}; "
                "use the Hugging Face folder instead"
            )
        return f"{names[module]}.{suffix}"

    def files(self) -> list[Path]:
        """See `Checkpoint.files`."""
        return [self.path]

    def digest(self, on_bytes: Callable[[int], None] = ignore) -> str:
        """See `Checkpoint.digest`."""
        found = hashlib.sha256()  # by which the file is known where it comes from
        hash_file(self.path, found, on_bytes)
        return f"sha256:{found.hexdigest()}"

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
        values = widen(rows, self.stored_type(name)).reshape(self.shape(name))
        if self._family.norms_from_one and name.endswith("norm.weight"):
            return values - np.float32(1)
        return values

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
        if not self._family.permuted:
            return None
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            return int(self._settings["num_attention_heads"])
        if name.endswith(("k_proj.weight", "k_proj.bias")):
            return int(self._settings["num_key_value_heads"])
        return None

    def generation(self) -> Defaults:
        """See `Checkpoint.generation`."""
        fields = self._reader.fields
        said = {name: fields[name].contents() for name in fields if name.startswith(FIELDS)}
        return fields_generation(self.path, said)

    def tokenizer(self) -> transformers.PreTrainedTokenizerBase | None:
        """See `Checkpoint.tokenizer`."""
        fields = self._reader.fields
        if "tokenizer.ggml.model" not in fields:
            return None
        said = {name: fields[name].contents() for name in fields if name.startswith("tokenizer.")}
        num_tokens = len(said.get("tokenizer.ggml.tokens") or ())
        rows = self._settings["vocab_size"]
        if num_tokens > rows:
            raise InputError(
                f"{self.path} has {num_tokens} tokens and embeds {rows}; fetch it again"
            )
        from edgeshard.compiler.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(self.path, self.architecture, said)

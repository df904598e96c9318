"""Hugging Face folders: `config.json` and safetensors, in one file or several with an index."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tokenizers
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgeshard.compiler.checkpoint import PICKLED, PICKLED_REMEDY, check_architecture
from edgeshard.compiler.generation import Defaults, read_generation
from edgeshard.compiler.sentencepiece_model import read_model
from edgeshard.compiler.stored import VALUE_BYTES, hash_file, ignore, read_rows, widen
from edgeshard.errors import InputError

if TYPE_CHECKING:
    import transformers

_TYPES = {"F32", "F16", "BF16"}


class SafetensorsCheckpoint:
    """A folder with `config.json` and `model.safetensors`, or its shards and their index."""

    kind: Literal["safetensors"] = "safetensors"

    def __init__(self, path: Path) -> None:
        """Open a folder; its tensors stay on disk.

        Raises:
            InputError: a file is missing or truncated, the weights are pickled, or the architecture
                is not supported.
        """
        self.path = path
        plain = self._json("config.json")
        check_architecture(str(plain.get("model_type")), None)
        _check_plain(path, plain)
        self._files: dict[str, Path] = {}
        self._offsets: dict[str, int] = {}
        self._open_files: dict[Path, Any] = {}
        for file in self._weight_files():
            try:
                handle: Any = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file} is not whole: {error}; fetch it again") from error
            self._open_files[file] = handle
            for tensor in handle.keys():  # noqa: SIM118  # the handle is no mapping
                if tensor in self._files:
                    first = self._files[tensor].name
                    raise InputError(f"tensor {tensor} lies in {first} and again in {file}")
                self._files[tensor] = file
            self._offsets.update(_offsets(file))
        self._check_index()

    @cached_property
    def config(self) -> transformers.PretrainedConfig:
        """See `Checkpoint.config`.

        Raises:
            InputError: transformers does not take it, or the architecture is not supported.
        """
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(self.path)
        except Exception as error:  # whatever transformers' own checks raise
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path}/config.json makes no configuration: {line}") from error
        check_architecture(config.model_type, config)
        return config

    def _check_index(self) -> None:
        """Refuse an index that names other places than the files have."""
        if (self.path / "model.safetensors").exists():
            return
        index = self._json("model.safetensors.index.json")["weight_map"]
        assert isinstance(index, dict)
        for tensor, name in index.items():
            actual = self._files.get(tensor)
            if actual is None or actual.name != name:
                where = "no file has it" if actual is None else f"it lies in {actual.name}"
                raise InputError(
                    f"the index of {self.path} says that {tensor} lies in {name}, but {where}; "
                    "fetch the whole checkpoint"
                )

    def _weight_files(self) -> list[Path]:
        single = self.path / "model.safetensors"
        if single.exists():
            return [single]
        if (self.path / "model.safetensors.index.json").exists():
            index = self._json("model.safetensors.index.json").get("weight_map")
            if not isinstance(index, dict):
                raise InputError(f"{self.path}/model.safetensors.index.json has no weight_map")
            names = sorted(set(map(str, index.values())))
            for name in names:
                if Path(name).name != name:
                    raise InputError(f"the index of {self.path} names {name!r}, not a plain file")
                if not (self.path / name).exists():
                    raise InputError(f"{self.path / name} is missing; fetch the whole checkpoint")
            return [self.path / name for name in names]
        if any(next(self.path.glob(f"*{pattern}"), None) for pattern in PICKLED):
            raise InputError(f"{self.path} has pickled weights only, {PICKLED_REMEDY}")
        raise InputError(f"{self.path} has no model.safetensors; give a whole checkpoint")

    def _json(self, name: str) -> dict[str, object]:
        try:
            plain = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.path / name}: {error}") from error
        if not isinstance(plain, dict):
            raise InputError(f"{self.path / name} is not a JSON object")
        return plain

    def files(self) -> list[Path]:
        """See `Checkpoint.files`: the configuration, the tokenizer and all weights."""
        extras = (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "chat_template.jinja",
        )
        paths = [self.path / name for name in extras if (self.path / name).exists()]
        return [*paths, *sorted(self._open_files)]

    def digest(self, on_bytes: Callable[[int], None] = ignore) -> str:
        """See `Checkpoint.digest`."""
        total = blake3()
        for path in self.files():
            found = blake3()
            hash_file(path, found, on_bytes)
            total.update(f"{path.name} ".encode())
            total.update(found.digest())
        return f"blake3:{total.hexdigest()}"

    def names(self) -> set[str]:
        """See `Checkpoint.names`."""
        return {name.removeprefix("model.") for name in self._files}

    def _raw(self, name: str) -> str:
        return name if name in self._files else f"model.{name}"

    def stored_type(self, name: str) -> str:
        """See `Checkpoint.stored_type`."""
        raw = self._raw(name)
        kind = str(self._open_files[self._files[raw]].get_slice(raw).get_dtype())
        if kind not in _TYPES:
            known = ", ".join(sorted(_TYPES))
            raise InputError(f"tensor {raw} of {self.path} is {kind}; supported: {known}")
        return kind

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint.shape`."""
        raw = self._raw(name)
        return tuple(self._open_files[self._files[raw]].get_slice(raw).get_shape())

    def floats(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.floats`."""
        return widen(np.concatenate(list(self.pieces(name))), self.stored_type(name)).reshape(
            self.shape(name)
        )

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """See `Checkpoint.pieces`."""
        file, shape = self._files[self._raw(name)], self.shape(name)
        offset = self._offsets[self._raw(name)]
        row_bytes = math.prod(shape[1:]) * VALUE_BYTES[self.stored_type(name)]
        return read_rows(file, offset, shape[0], row_bytes)

    def generation(self) -> Defaults:
        """See `Checkpoint.generation`."""
        return read_generation(self.path)

    def tokenizer(self) -> transformers.PreTrainedTokenizerBase | None:
        """See `Checkpoint.tokenizer`."""
        import transformers

        written, model = self.path / "tokenizer.json", self.path / "tokenizer.model"
        try:
            if written.exists():
                found = transformers.AutoTokenizer.from_pretrained(self.path)
                return as_written(found, tokenizers.Tokenizer.from_file(str(written)))
            return self._from_sentencepiece(model) if model.exists() else None
        except InputError:
            raise
        except Exception as error:  # of the tokenizers package, or of transformers
            line = " ".join(str(error).split())[:200]
            raise InputError(f"the tokenizer of {self.path} cannot be read: {line}") from error

    def _from_sentencepiece(self, model: Path) -> transformers.PreTrainedTokenizerBase:
        """Text from SentencePiece's file; special tokens and template from the files beside it."""
        import transformers

        beside = self.path / "tokenizer_config.json"
        said = self._json(beside.name) if beside.exists() else {}
        # What is unsaid is as transformers' tokenizer of Llama has it.
        pipeline, special = read_model(model, is_legacy=said.get("legacy") is True)
        unsaid = {name: text for name, text in special.items() if name not in said}
        return transformers.PreTrainedTokenizerFast.from_pretrained(
            self.path,
            tokenizer_object=pipeline,
            add_bos_token=said.get("add_bos_token", "bos_token" in special),
            **unsaid,
        )


def as_written(
    found: transformers.PreTrainedTokenizerBase, written: tokenizers.Tokenizer
) -> transformers.PreTrainedTokenizerBase:
    """A tokenizer that cuts text as its `tokenizer.json` says.

    transformers 5 makes the pipeline of some classes anew from the vocabulary, and Llama's drops a
    leading space. Special tokens, what surrounds a text and the template stay as it has them.
    """
    import transformers

    made, said = (json.loads(t.to_str()) for t in (found.backend_tokenizer, written))
    pipeline = {part: said[part] for part in ("normalizer", "pre_tokenizer", "model", "decoder")}
    if pipeline.items() <= made.items():
        return found
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(made | pipeline)),
        chat_template=found.chat_template,
        **found.special_tokens_map,
    )


def _check_plain(path: Path, plain: dict[str, object]) -> None:
    """Refuse weights that are quantised in a form of another tool."""
    quantised = plain.get("quantization_config")
    if isinstance(quantised, dict):
        method = str(quantised.get("quant_method", "unknown")).upper()
        raise InputError(
            f"{path} is quantised with {method}, which is not supported yet; give the original "
            "checkpoint and --precision int4, or a GGUF file"
        )


def _offsets(file: Path) -> dict[str, int]:
    """Where each tensor starts; the header has been checked by opening the file."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    return {
        name: 8 + size + int(entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }

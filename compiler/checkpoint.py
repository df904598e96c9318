"""What a checkpoint gives the compiler, whatever file format it comes in.

Tensors are named as Hugging Face's Llama names them, without the leading `model.`
(`layers.0.self_attn.q_proj.weight`), and have its row order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeshard.compiler.families import FAMILIES
from edgeshard.compiler.generation import Defaults
from edgeshard.errors import InputError
from edgeshard.schemas.common import CheckpointDigest

if TYPE_CHECKING:
    import transformers

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
PICKLED_REMEDY = (
    "which can run code when read; convert it to safetensors with transformers' save_pretrained"
)
MAX_POSITIONS = 2**21  # rotary tables of more do not fit a device that this is made for


class Checkpoint(Protocol):
    """Read access to a checkpoint; a piece of a tensor is in memory, or one tensor."""

    @property
    def kind(self) -> Literal["gguf", "safetensors"]:
        """The file format."""

    path: Path

    @property
    def config(self) -> transformers.PretrainedConfig:
        """Settings; the first look at them imports torch."""

    def files(self) -> list[Path]:
        """Every file that the model is made from."""

    def digest(self, on_bytes: Callable[[int], None] = lambda _: None) -> CheckpointDigest:
        """Digest of everything that the model is made from.

        Args:
            on_bytes: told how many more bytes are behind; what it raises ends the reading.
        """

    def names(self) -> set[str]:
        """Names of all tensors."""

    def stored_type(self, name: str) -> str:
        """How a tensor is stored: `F32`, `F16`, `BF16`, `Q4_0` and so on."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as the model sees it, `[rows, columns]` for a matrix."""

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, dequantised where needed."""

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """A matrix or vector as stored, some neighbouring rows `[rows, bytes]` at a time."""

    def tokenizer(self) -> transformers.PreTrainedTokenizerBase | None:
        """The tokenizer that came with the checkpoint, if one did."""

    def generation(self) -> Defaults:
        """What it says of generating where a request is silent."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF file, or what a hub id stands for.

    Raises:
        InputError: missing, truncated, of an unsupported architecture, or in a format that is
            refused (pickled weights).
    """
    from edgeshard.compiler.gguf_checkpoint import GgufCheckpoint
    from edgeshard.compiler.safetensors_checkpoint import SafetensorsCheckpoint

    path = locate(path)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.suffix == ".gguf" and path.is_file():
        return GgufCheckpoint(path)
    if path.suffix in PICKLED and path.is_file():
        raise InputError(f"{path} is pickled, {PICKLED_REMEDY}")
    if path.suffix == ".safetensors" and path.is_file():
        raise InputError(f"{path} has no configuration beside it by itself; give its folder")
    raise InputError(f"{path} is neither a Hugging Face folder nor a .gguf file")


def locate(path: Path) -> Path:
    """Where a checkpoint lies on this machine's disk: what a hub id stands for is fetched.

    Raises:
        InputError: there is nothing, or it cannot be fetched.
    """
    if path.exists():
        return path
    from edgeshard.compiler.hub import fetch, is_hub_id

    if is_hub_id(path):
        return fetch(path)
    raise InputError(f"no checkpoint at {path}; give a Hugging Face folder or a .gguf file")


def check_architecture(model_type: str, config: transformers.PretrainedConfig | None) -> None:
    """Refuse by name what the compiler does not support.

    Raises:
        InputError: names the architecture or the setting, and lists what is supported.
    """
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"architecture {model_type!r} is not supported; supported: {known}")
    if config is None:
        return
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        raise InputError("mixture-of-experts models are not supported yet")
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    ):
        value = getattr(config, name, None)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} of the configuration is {value!r}, not a number above 0")
    if config.max_position_embeddings > MAX_POSITIONS:
        raise InputError(
            f"max_position_embeddings is {config.max_position_embeddings}, at most {MAX_POSITIONS} "
            "are supported; lower it in config.json"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise InputError(
            f"{config.num_attention_heads} heads of queries are no multiple of "
            f"{config.num_key_value_heads} heads of keys"
        )


def check_layers(checkpoint: Checkpoint) -> None:
    """Compare the number of layers with the tensors before a model of that many is made.

    Raises:
        InputError: the configuration says another number.
    """
    numbers = [name.split(".")[1] for name in checkpoint.names() if name.startswith("layers.")]
    found = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    if found != checkpoint.config.num_hidden_layers:
        raise InputError(
            f"{checkpoint.path} has tensors of {found} layers, its configuration says "
            f"{checkpoint.config.num_hidden_layers}"
        )

"""What is known of a checkpoint's model besides its weights, found out by a process of its own.

    python -m edgeshard.compiler.describe_process PATH ──MessagePack──► Description

torch and transformers take seconds to import, with the interpreter's lock held, and hundreds of
MiB. In a process of their own they are gone when the weights begin, and until then another core
takes the digest and compiles the loops over weights. Where torch is imported already nothing is
gained by that and the model is described here.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeshard.compiler.assets import Text
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.semantic import Model, Node, Tables
from edgeshard.errors import EdgeShardError, InputError

LIMIT_SECONDS = 900.0  # imports and a trace take 10; a disk that hangs must not hang us


@dataclass(frozen=True)
class Description:
    """A checkpoint's model.

    Attributes:
        architecture: the configuration's `model_type`.
        is_tied: the embedding's weights are the head's.
        model: as semantic nodes.
        tables: the rotary tables that its blocks name.
        text: tokenizer, template, end tokens and defaults.
    """

    architecture: str
    is_tied: bool
    model: Model
    tables: dict[str, Tables]
    text: Text


class _Table(msgspec.Struct, frozen=True):
    shape: tuple[int, int]
    cos: bytes
    sin: bytes

    def array(self, data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.frombuffer(data, np.float32, math.prod(self.shape)).reshape(self.shape)


class _Found(msgspec.Struct, frozen=True, tag="found"):
    """A description; blocks of one kind are sent once."""

    architecture: str
    is_tied: bool
    embedding: tuple[Node, ...]
    kinds: tuple[tuple[Node, ...], ...]
    blocks: tuple[int, ...]
    head: tuple[Node, ...]
    tables: dict[str, _Table]
    text: Text


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    reason: str


def encode(result: Description | InputError) -> bytes:
    """The message of a description, or of why there is none."""
    if isinstance(result, InputError):
        return msgspec.msgpack.encode(_Refused(str(result)))
    model, kinds = result.model, result.model.kinds
    places = {id(nodes): place for place, nodes in enumerate(kinds)}
    return msgspec.msgpack.encode(
        _Found(
            result.architecture,
            result.is_tied,
            model.embedding,
            tuple(kinds),
            tuple(places[id(nodes)] for nodes in model.blocks),
            model.head,
            {
                kind: _Table((len(t.cos), t.cos.shape[1]), t.cos.tobytes(), t.sin.tobytes())
                for kind, t in result.tables.items()
            },
            result.text,
        )
    )


def decode(message: bytes) -> Description:
    """The description in a message.

    Raises:
        InputError: there is none; says why.
        msgspec.DecodeError: it is no such message.
    """
    found = msgspec.msgpack.decode(message, type=_Found | _Refused)
    if isinstance(found, _Refused):
        raise InputError(found.reason)
    blocks = tuple(found.kinds[place] for place in found.blocks)
    tables = {
        kind: Tables(table.array(table.cos), table.array(table.sin))
        for kind, table in found.tables.items()
    }
    model = Model(found.embedding, blocks, found.head)
    return Description(found.architecture, found.is_tied, model, tables, found.text)


class Describing:
    """Runs from `with` on; when the block is left early, the process is ended."""

    def __init__(self, path: Path) -> None:
        """Begin nothing yet; `path` is a checkpoint's on this machine's disk."""
        self._path = path.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._found: Description | None = None

    def __enter__(self) -> Describing:
        """Begin, unless it is to be done here."""
        if "torch" not in sys.modules:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.describe_process", str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        return self

    def __exit__(self, *error: object) -> None:
        """End, whether or not the description is there."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def result(self, checkpoint: Checkpoint) -> Description:
        """The description, once it is there.

        Args:
            checkpoint: the one at the path, should it be described here.

        Raises:
            InputError: there is none; says why.
            EdgeShardError: the process died, or took too long.
        """
        if self._found is None:
            self._found = self._take(checkpoint)
        return self._found

    def _take(self, checkpoint: Checkpoint) -> Description:
        if self._process is None:
            from edgeshard.compiler.describe import describe

            return describe(checkpoint)
        try:
            message, errors = self._process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EdgeShardError(
                f"tracing {self._path} took more than {LIMIT_SECONDS:.0f} s; is its disk alive?"
            ) from error
        try:
            return decode(message)
        except msgspec.DecodeError as error:
            lines = errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise EdgeShardError(
                f"the process that traces {self._path} ended with status "
                f"{self._process.returncode}: {lines[-1]}; is there memory for it?"
            ) from error

"""What an agent tells a stage's worker, and the session that the worker opens by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeshard.artifacts.store import Store
from edgeshard.schemas.common import Activation
from edgeshard.schemas.shard import ShardManifest


class Session(Protocol):
    """What computes a shard; see `edgeshard.runtime.session.ShardSession`."""

    def run(
        self, first_slot: int, positions: Sequence[int], values: NDArray[np.generic]
    ) -> NDArray[np.float32]:
        """Run `[B, S]` token ids or `[B, S, hidden]` states; logits `[B, vocab]` with the head."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what slot `source` holds of its first positions to slot `target`."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent tells a worker; paths, never secrets.

    Attributes:
        listen: endpoint of the data port.
        previous_key: the key that may deliver.
        last_key: of the last stage, which may deliver tokens to stage 0; None: nobody's.
        next_endpoint: data port of the next stage, or return port of the source.
        first_endpoint: data port of stage 0, of the last stage where stage 0 is another one.
        takes, gives: how hidden states come and go; without meaning where tokens do.
        cores: that threads are pinned to, the one that waits and computes first; empty: none.
        tells_figures: the agent wants to know what is counted here.
    """

    store: str
    shard: ShardManifest
    key: str
    epoch: int
    index: int
    provider: str
    threads: int
    cores: tuple[int, ...] = ()
    context: int
    slots: int
    chunk_tokens: int
    listen: str
    previous_key: str
    next_endpoint: str
    next_key: str
    last_key: str | None = None
    first_endpoint: str | None = None
    first_key: str = ""
    takes: Activation = "fp32"
    gives: Activation = "fp32"
    tells_figures: bool = False


OpenSession = Callable[[StageConfig], Session]


def open_shard(config: StageConfig) -> Session:
    """Open the real session of a shard."""
    from edgeshard.runtime.session import ShardSession

    return ShardSession.open(
        Store(Path(config.store)),
        config.shard,
        provider=config.provider,
        threads=config.threads,
        cores=config.cores,
        context=config.context,
        slots=config.slots,
    )

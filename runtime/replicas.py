"""Several chains that serve the same model: each request goes where its predicted wait is least.

    generate ─► Ping to every source ─► Pong(load) ─► the least wait ─► Client of that chain

A replica is a cluster of its own, with a source of its own; `esc plan --replicas` says whether that
pays.

Rule: a chain that does not answer in time, that has failed or that drains gets no request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from edgeshard.errors import EdgeShardError, InputError, LinkError
from edgeshard.runtime import ask
from edgeshard.runtime.channel import Dialer, KeyPair, Network, Poller
from edgeshard.runtime.client import CONNECT_SECONDS, Client, Generation
from edgeshard.runtime.keys import load_keys
from edgeshard.runtime.parameters import Options
from edgeshard.runtime.wire import encode, split
from edgeshard.schemas.cluster import Cluster

ANSWER_SECONDS = 1.0


class Replicas:
    """Generates text with whichever chain is free first. May be shared by threads."""

    def __init__(self, clients: Sequence[Client], keys: KeyPair) -> None:
        self._clients = clients
        self._network = Network(keys)
        self._dialers = [
            self._network.dial(
                client.source.client_endpoint,
                client.source.public_key,
                max_bytes=ask.MAX_EVENT_BYTES,
                queue=64,
            )
            for client in clients
        ]
        self._poller = Poller(*self._dialers)
        self._lock = threading.Lock()
        self._first = 0  # whom to prefer among equals
        self._connect_by = time.monotonic() + CONNECT_SECONDS

    @classmethod
    def connect(
        cls, clusters: Sequence[Cluster | Path | str], key: KeyPair | Path | str
    ) -> Replicas:
        """Use several clusters.

        Args:
            clusters: their files, or paths to them; deployed with the same model.
            key: the secret key file of a client or an operator of each.

        Raises:
            InputError: a file cannot be used, or there is none.
        """
        if not clusters:
            raise InputError("no clusters; give at least one")
        keys = key if isinstance(key, KeyPair) else load_keys(Path(key))
        return cls([Client.connect(cluster, keys) for cluster in clusters], keys)

    def loads(self) -> tuple[ask.Load | None, ...]:
        """How full each chain is; None where it does not say so in time, or takes nothing."""
        with self._lock:
            return self._ask()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        raw: bool = False,
        **options: Unpack[Options],
    ) -> Generation:
        """Ask the chain with the least wait; see `Client.generate`.

        Raises:
            InputError: an argument is out of its range.
            LinkError: no chain takes requests.
        """
        with self._lock:
            loads = self._ask()
            order = rank(loads, self._first)
            self._first = (self._first + 1) % len(self._clients)
        for index in order:
            try:
                return self._clients[index].generate(prompt, messages=messages, raw=raw, **options)
            except LinkError:
                if index == order[-1]:
                    raise
        raise LinkError(
            f"none of {len(loads)} chains takes requests ("
            f"{', '.join(client.source.client_endpoint for client in self._clients)}): "
            "look at `esc status` of each"
        )

    def close(self) -> None:
        """Hang up; requests that still run are cancelled by their coordinators."""
        self._network.close()
        for client in self._clients:
            client.close()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self) -> tuple[ask.Load | None, ...]:
        for dialer in self._dialers:
            while dialer.receive() is not None:  # answers that came too late
                pass
            dialer.wait_connected(max(0.0, self._connect_by - time.monotonic()))
        asked = [dialer for dialer in self._dialers if dialer.send([encode(ask.Ping())])]
        loads: dict[Dialer, ask.Load | None] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(loads) < len(asked) and (left := deadline - time.monotonic()) > 0:
            for source in self._poller.wait(left):
                if isinstance(source, Dialer):
                    self._take(source, loads)
        return tuple(loads.get(dialer) for dialer in self._dialers)

    def _take(self, dialer: Dialer, loads: dict[Dialer, ask.Load | None]) -> None:
        while (frames := dialer.receive()) is not None:
            try:
                event = ask.event_codec.decode(split(frames, 0)[0])
            except EdgeShardError:
                loads[dialer] = None  # it speaks another protocol
                continue
            if isinstance(event, ask.Pong):
                loads[dialer] = event.load


def rank(loads: Sequence[ask.Load | None], first: int) -> list[int]:
    """Chains that take requests, the one to ask first in front.

    The least predicted wait, then the fewest requests for a slot, then turns from `first` on.
    """
    known = [(load, index) for index, load in enumerate(loads) if load is not None]
    known.sort(
        key=lambda one: (one[0].wait_seconds, one[0].num_per_slot, (one[1] - first) % len(loads))
    )
    return [index for _, index in known]

"""Generate text with a deployed chain, from Python.

    with Client.connect("cluster.toml", "keys/me.secret") as client:
        for token in client.generate("What is the capital of France?", max_tokens=64):
            print(token.text, end="", flush=True)

`AsyncClient` is the same with `async with` and `async for`. Both may run many requests at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import msgspec

from edgeshard.errors import EdgeShardError, InputError, LinkError
from edgeshard.runtime import ask
from edgeshard.runtime.channel import KeyPair, Network
from edgeshard.runtime.connections import Connections
from edgeshard.runtime.exchange import Exchange, Result, Token
from edgeshard.runtime.keys import load_keys
from edgeshard.runtime.parameters import Options, parameters_of
from edgeshard.runtime.wire import encode, split
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster

__all__ = ["AsyncClient", "AsyncGeneration", "Client", "Generation", "Result", "Token"]

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.2
GOODBYE_SECONDS = 1.0


class _Stream:
    """One request on a connection that it has for itself; what both kinds of generation share."""

    def __init__(self, connections: Connections, request: ask.Generate) -> None:
        self._connections = connections
        self._connection = connections.take()
        self._dialer = self._connection.dialer
        self._request = msgspec.structs.replace(request, id=self._connection.number)
        self._exchange = self._new_exchange()
        self._cancel_wanted = False
        self._is_closed = False
        self._left = time.monotonic()

    def _new_exchange(self) -> Exchange:
        now, num_answers = time.monotonic(), self._request.parameters.n
        return Exchange(self._request.id, self._dialer.endpoint, now, num_answers)

    @property
    def result(self) -> Result:
        """The whole answer, once it is over; the first one of several.

        Raises:
            InputError: it is not over yet.
        """
        return self.results[0]

    @property
    def results(self) -> tuple[Result, ...]:
        """All answers, once they are over.

        Raises:
            InputError: one is not over yet.
        """
        if self._exchange.results is None:
            raise InputError("the answer is not over; read its tokens first")
        return self._exchange.results

    def cancel(self) -> None:
        """Ask for no more tokens; those on their way may still come. For any thread."""
        self._cancel_wanted = True

    def _begin(self, is_connected: bool) -> None:
        if not is_connected:
            raise LinkError(
                f"no coordinator answers at {self._dialer.endpoint} within {CONNECT_SECONDS:.0f} "
                "s: run `esc deploy`, or check the address, the firewall and both keys (a key "
                "that is not admitted looks the same)"
            )
        self._exchange = self._new_exchange()
        self._dialer.send([encode(self._request)])

    def _resume(self) -> None:
        self._exchange.was_away(time.monotonic() - self._left)

    def _take(self) -> Token | None:
        """The next token that is here already, after what is to be sent was sent."""
        now = time.monotonic()
        token = self._next_token(now)
        if self._exchange.result is None:
            if self._cancel_wanted:
                self._cancel_wanted = False
                self._dialer.send([encode(ask.Cancel(self._request.id))])
            connection = self._connection
            is_much = connection.taken_bytes - connection.told_bytes >= ask.ACK_BYTES
            if self._exchange.wants_ping(now) or is_much:
                connection.told_bytes = connection.taken_bytes
                self._dialer.send([encode(ask.Ping(connection.taken_bytes))])
        if token is not None:
            self._left = now
        return token

    def _next_token(self, now: float) -> Token | None:
        while (frames := self._dialer.receive()) is not None:
            header = split(frames, 0)[0]
            self._connection.taken_bytes += len(header)
            token = self._exchange.handle(ask.event_codec.decode(header), now)
            if token is not None:
                return token
        return None

    def _leave(self, linger_seconds: float = 0.0) -> None:
        """Let the connection go: to the next request, unless this one may not be over."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._exchange.is_over:
            self._connections.give_back(self._connection)
        else:
            self._connection.close(linger_seconds)

    def _say_goodbye(self) -> bool:
        """Cancel what still runs; whether to wait for its end."""
        if self._is_closed or self._exchange.result is not None:
            return False
        return self._dialer.send([encode(ask.Cancel(self._request.id))])


class Generation(_Stream, Iterator[Token]):
    """An answer as it grows: iterate over its tokens, then read `result`.

    Leaving a `with` block early, or `close`, cancels the request.
    """

    def __init__(self, connections: Connections, request: ask.Generate) -> None:
        """Connect and send the request.

        Raises:
            LinkError: no coordinator answers.
        """
        super().__init__(connections, request)
        try:
            self._begin(self._dialer.wait_connected(CONNECT_SECONDS))
        except BaseException:
            self._leave()
            raise

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Token:
        """The next token.

        Raises:
            StopIteration: the answer is over.
            EdgeShardError: it failed.
        """
        if self._is_closed:
            raise StopIteration
        self._resume()
        try:
            while (token := self._take()) is None:
                if self._exchange.result is not None:
                    self._leave()
                    raise StopIteration
                self._dialer.wait(TICK_SECONDS)
        except EdgeShardError:
            self._leave()
            raise
        return token

    def finish(self) -> Result:
        """Read what is left and return the whole answer."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Cancel the request if it runs, and hang up."""
        if self._say_goodbye():
            deadline = time.monotonic() + GOODBYE_SECONDS
            with contextlib.suppress(EdgeShardError):  # nobody waits for the answer any more
                while self._exchange.result is None and time.monotonic() < deadline:
                    self._take()
                    self._dialer.wait(0.05)
        self._leave(TICK_SECONDS)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGeneration(_Stream, AsyncIterator[Token]):
    """As `Generation`, for an event loop; the request is sent with the first `async for` step."""

    def __init__(self, connections: Connections, request: ask.Generate) -> None:
        super().__init__(connections, request)
        self._has_begun = False

    def __aiter__(self) -> AsyncGeneration:
        return self

    async def __anext__(self) -> Token:
        """The next token.

        Raises:
            StopAsyncIteration: the answer is over.
            EdgeShardError: it failed.
        """
        if self._is_closed:
            raise StopAsyncIteration
        self._resume()
        try:
            if not self._has_begun:
                self._has_begun = True
                self._begin(await self._dialer.wait_connected_async(CONNECT_SECONDS))
            while (token := self._take()) is None:
                if self._exchange.result is not None:
                    self._leave()
                    raise StopAsyncIteration
                await self._dialer.wait_async(TICK_SECONDS)
        except EdgeShardError:
            self._leave()
            raise
        return token

    async def finish(self) -> Result:
        """Read what is left and return the whole answer."""
        async for _ in self:
            pass
        return self.result

    async def close(self) -> None:
        """Cancel the request if it runs, and hang up."""
        if self._has_begun and self._say_goodbye():
            deadline = time.monotonic() + GOODBYE_SECONDS
            with contextlib.suppress(EdgeShardError):  # nobody waits for the answer any more
                while self._exchange.result is None and time.monotonic() < deadline:
                    self._take()
                    await self._dialer.wait_async(0.05)
        self._leave(TICK_SECONDS)

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Client:
    """Where the coordinator is, and the connections to it.

    Attributes:
        source: the device that it runs on.
    """

    is_async = False

    def __init__(self, cluster: Cluster | Path | str, key: KeyPair | Path | str) -> None:
        known = cluster if isinstance(cluster, Cluster) else files.read(Path(cluster), Cluster)
        keys = key if isinstance(key, KeyPair) else load_keys(Path(key))
        try:
            self.source = known.device(known.source)
        except KeyError:
            raise InputError(f"the cluster file has no device {known.source!r}") from None
        self._network = Network(keys)
        self._connections = Connections(self._network, self.source, asynchronous=self.is_async)


class Client(_Client):
    """Generates text, for code without an event loop. May be shared by threads."""

    @classmethod
    def connect(cls, cluster: Cluster | Path | str, key: KeyPair | Path | str) -> Client:
        """Use a cluster.

        Args:
            cluster: the cluster file, or its path.
            key: the secret key file of a client or an operator.

        Raises:
            InputError: a file cannot be used.
        """
        return cls(cluster, key)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        raw: bool = False,
        **options: Unpack[Options],
    ) -> Generation:
        """Ask for an answer, or for the continuation of a raw text.

        Args:
            prompt: what to answer; with `raw`, what to continue.
            messages: a conversation instead: `{"role": ..., "content": ...}` each.
            raw: no chat template.
            options: see `Options`.

        Raises:
            InputError: an argument is out of its range.
            LinkError: no coordinator answers.
        """
        return Generation(self._connections, _request(prompt, messages, raw, options))

    def close(self) -> None:
        """Hang up; requests that still run are cancelled by the coordinator."""
        self._network.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Client):
    """Generates text, for code with an event loop."""

    is_async = True

    @classmethod
    def connect(cls, cluster: Cluster | Path | str, key: KeyPair | Path | str) -> AsyncClient:
        """Use a cluster; see `Client.connect`."""
        return cls(cluster, key)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        raw: bool = False,
        **options: Unpack[Options],
    ) -> AsyncGeneration:
        """Ask for an answer; see `Client.generate`. A missing coordinator shows while reading."""
        return AsyncGeneration(self._connections, _request(prompt, messages, raw, options))

    async def close(self) -> None:
        """Hang up; requests that still run are cancelled by the coordinator."""
        self._network.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _request(
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    raw: bool,
    options: Options,
) -> ask.Generate:
    if (prompt is None) == (messages is None):
        raise InputError("give either a prompt or messages")
    if raw and prompt is None:
        raise InputError("raw continues a prompt; messages need the chat template")
    if prompt is not None and not raw:
        messages, prompt = [{"role": "user", "content": prompt}], None
    plain = [dict(message) for message in messages or ()]
    try:
        conversation = msgspec.convert(plain, tuple[ask.ChatMessage, ...])
    except msgspec.ValidationError as error:
        raise InputError(f"the messages are not a conversation: {error}") from error
    request = ask.Generate(0, prompt, conversation, parameters_of(options))
    size = len(encode(request))
    if size > ask.MAX_ASK_BYTES:
        raise InputError(f"the request has {size} bytes, at most {ask.MAX_ASK_BYTES} are taken")
    return request

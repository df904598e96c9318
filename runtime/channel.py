"""The only file that speaks ZeroMQ: sockets that are encrypted, bounded and never block.

    Listener (ROUTER)  bound; takes from admitted keys only, knows who sent each message
    Dialer   (DEALER)  connected to one listener whose key it knows
    Poller             one wait over any of them, and over a `Waker`

Rule: fail closed. Every listener has a ZAP domain that is enforced, its authenticator runs before
it binds, and each message's key is checked again, so that a key that is no longer admitted delivers
nothing on connections that it already has. Without keys only loopback can be bound.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import zmq
import zmq.asyncio
from zmq.auth.thread import ThreadAuthenticator

from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime.address import binding
from edgeshard.runtime.waker import Waker

OLDEST_LIBZMQ = (4, 3, 5)  # older ones can be stopped or crashed by strangers despite CURVE
PART_MARGIN_BYTES = 1024  # what CURVE adds to a part, counted by MAXMSGSIZE
HEARTBEAT_MS = 1000
SILENCE_MS = 3000
PULSE_MS = 800  # of a connection that carries nothing large
BULK_MS = 60_000  # of one whose signs of life queue behind megabytes: 4 MiB at 1 Mbit/s take 34 s
RECONNECT_MS = 100
MAX_RECONNECT_MS = 500
# Plain numbers: the enumerations cost as much as the calls that take them.
_NOW, _MORE_NOW = int(zmq.NOBLOCK), int(zmq.SNDMORE | zmq.NOBLOCK)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new pair."""
        return cls(*(half.decode("ascii") for half in zmq.curve_keypair()))

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """The pair that a secret key belongs to.

        Raises:
            ValueError: it is no secret key.
        """
        try:
            return cls(zmq.curve_public(secret.encode("ascii")).decode("ascii"), secret)
        except (zmq.ZMQError, UnicodeError) as error:
            raise ValueError("not a CURVE key in Z85") from error


class Arrival(NamedTuple):
    """A message that a listener took.

    Attributes:
        peer: where to send an answer; made by our own socket, never by the peer.
        key: the sender's public key, "" without keys.
    """

    peer: bytes
    key: str
    frames: list[memoryview]


class _End:
    """A socket that is closed once; `waiting` is its owner where an event loop waits for it."""

    def __init__(self, socket: zmq.Socket[bytes], waiting: zmq.asyncio.Socket | None) -> None:
        self.socket, self._waiting = socket, waiting
        self._owner = socket if waiting is None else waiting

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._owner.closed)

    def close(self, linger_seconds: float = 0.0) -> None:
        """Close the socket, after at most `linger_seconds` for what is not sent yet."""
        self._owner.disable_monitor()  # one left attached deafens the context's next sockets
        self._owner.close(linger=int(linger_seconds * 1000))


class Listener(_End):
    """A bound ROUTER socket that takes messages from admitted keys."""

    def __init__(self, socket: zmq.Socket[bytes], admitted: Iterable[str] | None) -> None:
        super().__init__(socket, None)
        self.refused = 0
        self._admitted = None if admitted is None else frozenset(admitted)
        self._wait_ms = -1

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return str(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def admit(self, keys: Iterable[str]) -> None:
        """Replace the keys whose messages are taken."""
        self._admitted = frozenset(keys)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the authenticator lets a key in."""
        return self._admitted is not None and key.decode("ascii") in self._admitted

    def receive(self, seconds: float = 0.0) -> Arrival | None:
        """The next message; None where none comes within `seconds`.

        Waiting here, where a listener is all that is waited for, saves a poll.
        """
        if not seconds and not _has_message(self.socket):
            return None
        flags = 0 if seconds else _NOW
        if seconds and self._wait_ms != int(seconds * 1000):
            self._wait_ms = int(seconds * 1000)
            self.socket.setsockopt(zmq.RCVTIMEO, self._wait_ms)
        while True:
            try:
                identity = part = self.socket.recv(flags, copy=False)
            except zmq.Again:
                return None
            frames = []
            while part.more:
                part = self.socket.recv(copy=False)
                frames.append(part.buffer)
            key = "" if self._admitted is None else str(identity.get("User-Id"))
            if self._admitted is not None and key not in self._admitted:
                self.refused += 1
                flags = _NOW  # whoever is not admitted prolongs no wait
                continue
            return Arrival(identity.bytes, key, frames)

    def send(self, peer: bytes, frames: Iterable[bytes]) -> bool:
        """Send to a peer; False where it is gone or takes nothing any more."""
        try:
            _send(self.socket, [peer, *frames])
        except zmq.ZMQError as error:
            if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
                return False
            raise
        return True


class Dialer(_End):
    """A DEALER socket connected to one listener."""

    def __init__(
        self, socket: zmq.Socket[bytes], waiting: zmq.asyncio.Socket | None, endpoint: str
    ) -> None:
        super().__init__(socket, waiting)
        self.endpoint = endpoint

    def receive(self) -> list[memoryview] | None:
        """The frames of the next message, or None where none is there yet."""
        if not _has_message(self.socket):
            return None
        try:
            frames = self.socket.recv_multipart(_NOW, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def send(self, frames: Iterable[bytes | memoryview]) -> bool:
        """Send; False where nobody is connected or the queue is full."""
        try:
            _send(self.socket, list(frames))
        except zmq.Again:
            return False
        return True

    @property
    def is_connected(self) -> bool:
        """Whether the peer has let us in and shows signs of life; False too at a full queue."""
        return self.wait_connected(0.0)

    def wait_connected(self, seconds: float) -> bool:
        """Wait until the peer has let us in: it is there and both keys are right."""
        return bool(self.socket.poll(int(seconds * 1000), zmq.POLLOUT))

    def wait(self, seconds: float) -> bool:
        """Wait for a message."""
        return bool(self.socket.poll(int(seconds * 1000), zmq.POLLIN))

    async def wait_connected_async(self, seconds: float) -> bool:
        """As `wait_connected`, for a dialer made with `asynchronous`."""
        return await self._poll_async(seconds, zmq.POLLOUT)

    async def wait_async(self, seconds: float) -> bool:
        """As `wait`, for a dialer made with `asynchronous`."""
        return await self._poll_async(seconds, zmq.POLLIN)

    async def _poll_async(self, seconds: float, event: int) -> bool:
        if self._waiting is None:
            raise ValueError("this dialer was not made for an event loop")
        poller = zmq.asyncio.Poller()
        poller.register(self._waiting, event)
        return bool(await poller.poll(int(seconds * 1000)))


def _has_message(socket: zmq.Socket[bytes]) -> bool:
    """Whether one is there; to learn it by receiving's error costs more."""
    return bool(int(socket.get(_EVENTS)) & _READABLE)


def _send(socket: zmq.Socket[bytes], frames: Sequence[bytes | memoryview]) -> None:
    """All frames as one message; raises `zmq.ZMQError` with none sent where nobody takes it."""
    for frame in frames[:-1]:
        socket.send(frame, _MORE_NOW)
    socket.send(frames[-1], _NOW)


Source = Listener | Dialer | Waker


class Poller:
    """One wait over several sources."""

    def __init__(self, *sources: Source) -> None:
        self._poller = zmq.Poller()
        self._sources: dict[object, Source] = {}
        for source in sources:
            self.watch(source)

    def watch(self, source: Source, *, readable: bool = True, writable: bool = False) -> None:
        """Choose what of a source ends the wait: a message, room to send, both or neither."""
        self._sources[source.socket] = source
        flags = (zmq.POLLIN if readable else 0) | (zmq.POLLOUT if writable else 0)
        self._poller.register(source.socket, flags)

    def wait(self, seconds: float) -> set[Source]:
        """Wait until at least one source has something, at most `seconds`."""
        events = self._poller.poll(max(0, int(seconds * 1000)))
        return {self._sources[socket] for socket, _ in events}


class Network:
    """One process's way to the others: a ZeroMQ context with its authenticator."""

    def __init__(self, keys: KeyPair | None) -> None:
        """Start.

        Raises:
            DeviceError: the installed libzmq is too old or has no CURVE.
        """
        version = zmq.zmq_version_info()
        if version < OLDEST_LIBZMQ or not zmq.has("curve"):
            raise DeviceError(
                f"libzmq {'.'.join(map(str, version))} is too old or has no CURVE; at least "
                f"{'.'.join(map(str, OLDEST_LIBZMQ))} is needed: pip install -U pyzmq"
            )
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._open: list[Listener | Dialer] = []
        self._lock = threading.Lock()

    def listen(
        self,
        endpoint: str,
        *,
        domain: str,
        admitted: Iterable[str],
        max_bytes: int,
        queue: int,
        unread: int | None = None,
        silence_ms: int = SILENCE_MS,
    ) -> Listener:
        """Bind.

        Args:
            endpoint: `tcp://HOST:PORT`; port 0 takes a free one.
            domain: ZAP domain; one listener each.
            admitted: public keys that may deliver.
            max_bytes: longest part that is taken.
            queue: messages that wait at most, per peer and direction.
            unread: that a peer may leave waiting to be sent to it; as many as `queue` unless given.
            silence_ms: as of `dial`.

        Raises:
            InputError: the address is not ours, or lies beyond loopback and there are no keys.
            DeviceError: the port is in use.
        """
        address = binding(endpoint, has_keys=self._keys is not None)
        socket = self._context.socket(zmq.ROUTER)
        self._bound_socket(socket, max_bytes, queue, silence_ms)
        socket.setsockopt(zmq.SNDHWM, unread or queue)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        listener = Listener(socket, None if self._keys is None else admitted)
        if self._keys is not None:
            if self._authenticator is None:
                self._authenticator = ThreadAuthenticator(self._context)
                self._authenticator.start()
            self._authenticator.configure_curve_callback(domain, listener)
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise DeviceError(
                    f"{endpoint} is in use by another program; stop it or choose another port"
                ) from error
            raise InputError(f"cannot listen at {endpoint}: {error.strerror}") from error
        self._own(listener)
        return listener

    def dial(
        self,
        endpoint: str,
        server_key: str,
        *,
        max_bytes: int,
        queue: int,
        asynchronous: bool = False,
        silence_ms: int = SILENCE_MS,
    ) -> Dialer:
        """Connect, and reconnect whenever the peer comes back; returns at once.

        Args:
            endpoint: of a listener.
            server_key: its public key.
            max_bytes: longest part that is taken.
            queue: messages that wait at most, per direction.
            asynchronous: an event loop can wait for it.
            silence_ms: that ends the connection; signs of life queue behind what is sent.
        """
        waiting: zmq.asyncio.Socket | None = None
        socket: zmq.Socket[bytes]
        if asynchronous:
            waiting = zmq.asyncio.Context.shadow(self._context).socket(zmq.DEALER)
            socket = zmq.Socket.shadow(waiting)
        else:
            socket = self._context.socket(zmq.DEALER)
        self._bound_socket(socket, max_bytes, queue, silence_ms)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, SILENCE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        if self._keys is not None:
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, server_key)
        socket.connect(endpoint)
        dialer = Dialer(socket, waiting, endpoint)
        self._own(dialer)
        return dialer

    def _own(self, one: Listener | Dialer) -> None:
        with self._lock:
            self._open = [*(other for other in self._open if not other.is_closed), one]

    def _bound_socket(
        self, socket: zmq.Socket[bytes], max_bytes: int, queue: int, silence_ms: int
    ) -> None:
        for option, value in (
            (zmq.IPV6, 1),
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.MAXMSGSIZE, max_bytes + PART_MARGIN_BYTES),
            (zmq.SNDHWM, queue),
            (zmq.RCVHWM, queue),
            (zmq.HEARTBEAT_IVL, min(HEARTBEAT_MS, silence_ms // 4)),
            (zmq.HEARTBEAT_TIMEOUT, silence_ms),
            (zmq.HEARTBEAT_TTL, max(silence_ms, SILENCE_MS)),
            (zmq.HANDSHAKE_IVL, SILENCE_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 30),
        ):
            socket.setsockopt(option, value)
        if self._keys is not None:
            socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self._keys.public)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys.secret)

    def close(self, linger_seconds: float = 0.0) -> None:
        """Close every socket, after at most `linger_seconds` for what is not sent yet."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        for one in self._open:
            if not one.is_closed:
                one.close(linger_seconds)
        self._context.term()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Measures the way from one device to another, through sockets like those of the chain.

sender's agent ── DEALER ── frame ──► ROUTER on the data port ── receiver's agent
◄── same frame back (latency) or an empty one (rate) ──

In a chain the receiver has slept while others computed, and waking it is part of the way. So frames
go in quick succession, which gives the way between two that are awake, and after rests: what those
take above the way back is the latency.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from edgeshard.errors import LinkError
from edgeshard.runtime.channel import Arrival, Dialer, Listener
from edgeshard.runtime.wire import Codec, Count, Message, ProtocolError, encode, split
from edgeshard.schemas.profile import LinkProfile, Timing

MAX_PROBE_BYTES = 4 * 2**20
RATE_FRAME_BYTES = (2**20, 2 * 2**20, 4 * 2**20)
SMALL_FRAME_BYTES = (64 * 1024, 256 * 1024)
RATE_REPEATS = 3
LEAST_SAMPLES, SAMPLE_SECONDS = 5, 4.0
REST_SECONDS = 0.005
LIMIT_SECONDS = 30.0
WARM_UP = 5


class Probe(Message, frozen=True):
    """A probe frame; the payload comes back where `echo` says so."""

    nonce: Count
    echo: bool


_codec: Codec[Probe] = Codec(Probe)


def answer_probe(listener: Listener, arrival: Arrival) -> None:
    """Send a probe back."""
    try:
        header, payload = split(arrival.frames)
        probe = _codec.decode(header)
    except ProtocolError:
        return  # it is no probe; the sender's limit tells it so
    frames = [bytes(header)]
    if probe.echo and payload is not None:
        frames.append(bytes(payload))
    listener.send(arrival.peer, frames)


def measure_link(
    dialer: Dialer, source: str, target: str, *, frame_bytes: int, num_samples: int
) -> LinkProfile:
    """Measure latency and rate.

    Args:
        dialer: connected to a device that answers probes.
        source: name of this device.
        target: name of that device.
        frame_bytes: size of a decode step's frame.
        num_samples: round trips of such frames, in quick succession and after rests each; fewer
            where they take long.

    Returns:
        Latency to a receiver that has rested, and the rate of frames of 1 to 4 MiB, or of
        smaller ones over a slow link.

    Raises:
        LinkError: the device does not answer in time.
    """
    if not dialer.wait_connected(5.0):
        raise LinkError(
            f"{target} does not answer link probes of {source} at {dialer.endpoint} within 5 s: "
            "check the address and the firewall of its data port"
        )
    prober = _Prober(dialer, time.monotonic() + LIMIT_SECONDS, target)
    small = bytes(frame_bytes)
    for _ in range(WARM_UP):
        prober.round_trip(small, echo=True)
    awake = _samples(lambda: prober.round_trip(small, echo=True), num_samples)
    there_and_back = statistics.median(awake)
    way_back = there_and_back / 2

    def rested() -> float:
        way = prober.round_trip(small, echo=True, rest_seconds=REST_SECONDS) - way_back
        return max(way, way_back)

    times = sorted(_samples(rested, num_samples))
    latency = statistics.median(times)
    return LinkProfile(
        source=source,
        target=target,
        latency_seconds=latency,
        bytes_per_second=_rate(prober, there_and_back),
        time=Timing(
            median_seconds=latency,
            low_seconds=times[len(times) // 10],
            high_seconds=times[(len(times) * 9) // 10],
            num_samples=len(times),
        ),
    )


def _samples(take: Callable[[], float], most: int) -> list[float]:
    started, found = time.monotonic(), [take()]
    while len(found) < most:
        if len(found) >= LEAST_SAMPLES and time.monotonic() - started > SAMPLE_SECONDS:
            break
        found.append(take())
    return found


def _rate(prober: _Prober, there_and_back: float) -> float:
    """Bytes a second of the largest frames; none is sent that might take half of what is left.

    Small ones first, which a far peer makes look slow: their rate is a lower bound.
    """
    found: list[tuple[int, float]] = []
    large = [size for size in RATE_FRAME_BYTES for _ in range(RATE_REPEATS)]
    for size in (*SMALL_FRAME_BYTES, *large):
        if found and size / found[-1][1] > prober.seconds_left / 2:
            break
        seconds = prober.round_trip(bytes(size), echo=False)
        found.append((size, size / max(seconds - there_and_back, 1e-6)))
    rates = [rate for size, rate in found if size in RATE_FRAME_BYTES]
    return statistics.median(rates) if rates else found[-1][1]


class _Prober:
    def __init__(self, dialer: Dialer, deadline: float, target: str) -> None:
        self._dialer = dialer
        self._deadline = deadline
        self._target = target
        self._nonce = 0

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def round_trip(self, payload: bytes, *, echo: bool, rest_seconds: float = 0.0) -> float:
        self._nonce += 1
        time.sleep(rest_seconds)
        started = time.perf_counter()
        if not self._dialer.send([encode(Probe(self._nonce, echo)), payload]):
            raise LinkError(f"the connection to {self._target} was lost during link probes")
        while True:
            left = self.seconds_left
            if left <= 0 or not self._dialer.wait(left):
                raise LinkError(
                    f"{self._target} did not answer link probes within {LIMIT_SECONDS:.0f} s"
                )
            frames = self._dialer.receive()
            if frames is not None and _codec.decode(frames[0]).nonce == self._nonce:
                return time.perf_counter() - started

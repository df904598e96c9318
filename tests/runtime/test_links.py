"""The link probe on a made-up link: what it makes of a receiver that has to wake up."""

from __future__ import annotations

import math
from typing import cast

import pytest

from edgeshard.errors import LinkError
from edgeshard.runtime import links
from edgeshard.runtime.channel import Dialer
from edgeshard.schemas.profile import LinkProfile

WAY, WAKING, RATE = 0.001, 0.0004, 100e6
FRAME_BYTES = 2304


class Link:
    """A peer and a clock: a way takes WAY, the peer wakes in WAKING once it has rested."""

    endpoint = "tcp://127.0.0.1:1"

    def __init__(
        self, *, answers: bool = True, slow: float | None = None, far: float = 0.0
    ) -> None:
        """A link.

        Args:
            answers: whether the peer does.
            slow: bytes a second, which small frames take time for as well.
            far: seconds there and back; a window that doubles from 14,600 bytes takes as many.
        """
        self.now = 0.0
        self._slow = slow
        self._far = far
        self._rested = False
        self._answers = answers
        self._frames: list[bytes] | None = None

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._rested = seconds > 0

    def wait_connected(self, seconds: float) -> bool:
        return True

    def send(self, frames: list[bytes]) -> bool:
        large = 0 if len(frames[1]) <= FRAME_BYTES else len(frames[1])
        self.now += 2 * WAY + (WAKING if self._rested else 0.0)
        self.now += large / RATE if self._slow is None else self._both_ways(frames[1]) / self._slow
        self.now += self._far * (1 + math.ceil(max(0.0, math.log2(large / 14_600 + 1) - 1)))
        self._rested = False
        self._frames = frames
        return True

    def _both_ways(self, frame: bytes) -> int:
        return len(frame) * (2 if len(frame) <= FRAME_BYTES else 1)  # small ones come back

    def wait(self, seconds: float) -> bool:
        return self._answers

    def receive(self) -> list[bytes] | None:
        return self._frames


def measured(link: Link, monkeypatch: pytest.MonkeyPatch) -> LinkProfile:
    """What the probe says of the link."""
    monkeypatch.setattr(links, "time", link)
    dialer = cast("Dialer", link)
    return links.measure_link(dialer, "a", "b", frame_bytes=FRAME_BYTES, num_samples=10)


def test_waking_the_receiver_is_part_of_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(Link(), monkeypatch)
    assert found.latency_seconds == pytest.approx(WAY + WAKING)
    assert found.time.low_seconds == pytest.approx(WAY + WAKING)


def test_the_rate_is_that_of_the_bytes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(Link(), monkeypatch).bytes_per_second == pytest.approx(RATE)


@pytest.mark.parametrize("megabits", [0.15, 1.0, 2.3, 5.0, 20.0, 100.0])
def test_a_slow_link_is_measured_within_the_limit(
    megabits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(slow=megabits * 125e3)
    found = measured(link, monkeypatch)
    assert link.now < links.LIMIT_SECONDS
    assert found.bytes_per_second == pytest.approx(megabits * 125e3, rel=0.1)
    way = WAY + WAKING + FRAME_BYTES / (megabits * 125e3)
    assert found.latency_seconds == pytest.approx(way, rel=0.01)


@pytest.mark.parametrize("far", [0.05, 0.2, 0.3])
def test_a_far_peer_is_not_taken_for_a_slow_link(
    far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(far=far)
    found = measured(link, monkeypatch)
    assert link.now < links.LIMIT_SECONDS
    # 1 MiB takes six windows more than the first, 4 MiB eight; 64 KiB would have shown half of it.
    assert found.bytes_per_second >= 2**20 / (6 * far + 2**20 / RATE)


def test_a_peer_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LinkError, match=r"b did not answer link probes within 30 s"):
        measured(Link(answers=False), monkeypatch)

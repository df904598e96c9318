"""How long a connection has been gone. No socket, no clock.

ZeroMQ ends a connection from which no sign of life comes (`PULSE_MS`) and dials again by itself. A
short gap is none: whoever ends may be about to say why, and a dialer may be back at once.
"""

from __future__ import annotations

LOOK_SECONDS = 0.25  # from look to look
GONE_SECONDS = 0.25  # and how long one may be away


class LinkWatch:
    """Looks at one connection; one that was never there is not missed."""

    def __init__(self) -> None:
        self._was_up = False
        self._gone_since: float | None = None

    def saw(self, is_up: bool, now: float) -> None:
        """It is there, or is not."""
        if is_up:
            self._was_up, self._gone_since = True, None
        elif self._was_up and self._gone_since is None:
            self._gone_since = now

    def is_cut(self, now: float) -> bool:
        """Whether it is gone for good, as far as one can tell."""
        return self._gone_since is not None and now - self._gone_since >= GONE_SECONDS

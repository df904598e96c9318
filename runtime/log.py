"""What a process says of itself on standard error: lines for a person, or JSON for machines.

    text   warnings and errors, as they are
    json   these and what happens besides: {"time", "level", "process", "event", "text", …}

`EDGESHARD_LOG=json` in the environment chooses, for an agent and all its children.

Rule: no prompt, answer, token or key is ever logged. A line has an event's fixed name, a text of
ours, and counts, sizes, times and names of devices as fields.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime

import msgspec

from edgeshard.runtime.schedule_events import Fail, Finish

VARIABLE = "EDGESHARD_LOG"
JSON = "json"
_LOGGER = logging.getLogger("edgeshard.runtime")

Field = str | int | float | bool


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str, **always: Field) -> None:
        """Name the process; `always` is in each line."""
        super().__init__()
        self._process = process
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "event": getattr(record, "event", "log"),
            "text": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        return msgspec.json.encode(line).decode()


class StandardError(logging.Handler):
    """Writes to what standard error is at that moment, which a program around us may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # it is closed: nobody reads
            self.handleError(record)


def set_up(process: str, **always: Field) -> None:
    """Log from now on, for a process that is ours from start to end."""
    handler = StandardError()
    is_json = os.environ.get(VARIABLE) == JSON
    if is_json:
        handler.setFormatter(JsonLines(process, **always))
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO if is_json else logging.WARNING)
    _LOGGER.propagate = False


def note(event: str, text: str, **fields: Field) -> None:
    """Log what is as it should be; only seen in JSON."""
    _LOGGER.info("%s", text, extra={"event": event, "fields": fields})


def warn(event: str, text: str, **fields: Field) -> None:
    """Log what somebody should know."""
    _LOGGER.warning("%s", text, extra={"event": event, "fields": fields})


def request_over(one: Finish | Fail) -> None:
    """Log that a request ended; why it failed is said where it did."""
    match one:
        case Finish():
            text = f"request {one.request} ended: {one.reason}"
            ended = {"request": one.request, "outcome": one.reason, "tokens": one.num_tokens}
            note("request.ended", text, **ended)
        case Fail():
            text = f"request {one.request} failed with a {one.kind}"
            note("request.failed", text, request=one.request, kind=one.kind)

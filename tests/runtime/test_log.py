"""Log lines: text for a person, JSON for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from edgeshard.runtime import log
from edgeshard.runtime.schedule_events import Fail, Finish


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    logger = logging.getLogger("edgeshard.runtime")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def test_a_person_sees_warnings_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(log.VARIABLE, raising=False)
    log.set_up("worker", stage=1)
    log.note("stage.ready", "the stage takes steps")
    log.warn("message.refused", "100 % of it")
    assert capsys.readouterr().err == "100 % of it\n"


def test_a_machine_sees_all_with_its_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log.VARIABLE, log.JSON)
    log.set_up("worker", stage=1)
    log.note("stage.ready", "the stage\ntakes steps", units="2-4")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found.pop("pid") > 0
    assert found == {
        "level": "info",
        "process": "worker",
        "event": "stage.ready",
        "text": "the stage\ntakes steps",
        "stage": 1,
        "units": "2-4",
    }


def test_why_a_request_failed_is_not_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log.VARIABLE, log.JSON)
    log.set_up("coordinator")
    log.request_over(Finish(7, "stop", 3))
    log.request_over(Fail(8, "InputError", "the prompt says hello"))
    text = capsys.readouterr().err
    ended, failed = map(json.loads, text.splitlines())
    assert (ended["request"], ended["outcome"], ended["tokens"]) == (7, "stop", 3)
    assert (failed["request"], failed["kind"]) == (8, "InputError")
    assert "hello" not in text


def test_lines_go_to_the_standard_error_of_the_moment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that ran within a test once left a handler that wrote to its closed stream."""
    closed = io.StringIO()
    monkeypatch.setattr("sys.stderr", closed)
    log.set_up("agent")
    monkeypatch.undo()
    closed.close()

    log.warn("message.refused", "said later")

    assert capsys.readouterr().err == "said later\n"

"""What differs between operating systems."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from edgeshard.system import computing_environment, core_numbers, pin_thread

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables")


@linux
@pytest.mark.parametrize("own", ["", "glibc.malloc.hugetlb=0"])
def test_a_computing_process_asks_for_huge_pages_and_what_a_person_set_comes_last(
    monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", own)

    found = computing_environment()["GLIBC_TUNABLES"]

    assert found.split(":") == ["glibc.malloc.hugetlb=1", *([own] if own else [])]


@linux
def test_the_rest_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESHARD_TEST", "kept")
    command = [sys.executable, "-c", "import os; print(os.environ['EDGESHARD_TEST'])"]

    said = subprocess.run(
        command, env=computing_environment(), capture_output=True, text=True, check=True, timeout=30
    )

    assert said.stdout.strip() == "kept"


@linux
def test_a_pinned_thread_and_what_it_starts_stay_on_one_core() -> None:
    core, found = max(core_numbers()), []

    def work() -> None:  # a thread of its own: this one is not to stay pinned
        pin_thread(core)
        started = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        started.start()
        started.join()
        found.append(os.sched_getaffinity(0))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()

    assert found == [{core}, {core}]


@linux
def test_there_is_no_core_beyond_the_last() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        pin_thread(4095)

"""What every test process does once."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare torch, transformers and the tests from garbage collection: a walk takes half a second.

    The profiler alone asks for some twenty of them in a test.
    """
    gc.collect()
    gc.freeze()

"""What child processes share."""

from __future__ import annotations

import gc

from edgeshard.runtime.child import settle


def test_what_is_loaded_before_is_not_collected_again_and_again() -> None:
    before = gc.get_freeze_count()
    try:
        settle()
        assert gc.get_freeze_count() > before + 10_000
    finally:
        gc.unfreeze()

"""What child processes share."""

from __future__ import annotations

import gc

from edgeshard.runtime.child import settle


def test_what_is_loaded_before_is_not_collected_again_and_again() -> None:
    gc.unfreeze()
    settle()
    assert gc.get_freeze_count() > 10_000

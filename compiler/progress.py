"""How far a compile is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of the checkpoint's parameters are behind."""

    step: str
    done: int
    total: int

"""Every error that EdgeShard raises on purpose, by whose fault it is.

    EdgeShardError
    ├── InputError      what the person gave: a path, an option, a prompt          exit 2
    ├── ArtifactError   what lies in a store: a blob, a manifest, a graph          exit 3
    ├── PlanError       no plan can satisfy what was asked                         exit 4
    ├── DeviceError     an agent or a stage refused, failed or died                exit 5
    ├── LinkError       a peer did not answer, or speaks another version           exit 6
    └── BusyError       there is no room for it now; says when to ask again        exit 7

The text of an error is one line: the value, the limit and the next step.
"""

from __future__ import annotations


class EdgeShardError(Exception):
    """Base of every error that EdgeShard raises on purpose."""

    exit_code = 1


class InputError(EdgeShardError):
    """What the person gave cannot be used."""

    exit_code = 2


class ArtifactError(EdgeShardError):
    """What lies in a store is missing, changed or not what it says."""

    exit_code = 3


class PlanError(EdgeShardError):
    """No plan can satisfy what was asked."""

    exit_code = 4


class DeviceError(EdgeShardError):
    """An agent or a stage refused, failed or died."""

    exit_code = 5


class LinkError(EdgeShardError):
    """A peer did not answer in time, or does not speak our version."""

    exit_code = 6


class BusyError(EdgeShardError):
    """There is no room for a request now.

    Attributes:
        retry_seconds: when to ask again, by the rate of late; None where nobody knows.
    """

    exit_code = 7
    retry_seconds: float | None = None

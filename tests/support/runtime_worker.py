"""A worker process that computes with the double: `python -m support.runtime_worker`."""

from __future__ import annotations

import sys

from edgeshard.runtime.worker import run_stage
from support.runtime_double import open_double

if __name__ == "__main__":
    sys.exit(run_stage(open_double))

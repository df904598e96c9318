"""The process that describes a checkpoint's model, for `description.py`.

python -m edgeshard.compiler.describe_process PATH     writes a message on its standard output
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from edgeshard.errors import InputError


def main() -> None:
    """Describe the checkpoint at the path given."""
    gc.disable()  # a sixth of its time: imports leave much behind, and all of it is kept
    said = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is not part of the message

    from edgeshard.compiler.checkpoint import open_checkpoint
    from edgeshard.compiler.describe import describe
    from edgeshard.compiler.description import encode

    try:
        message = encode(describe(open_checkpoint(Path(sys.argv[1]))))
    except InputError as error:
        message = encode(error)
    with os.fdopen(said, "wb") as output:
        output.write(message)


if __name__ == "__main__":
    main()

"""EdgeShard: one language model over the unequal devices that people already own.

The public surface for programs:

    from edgeshard import Client
    with Client.connect("cluster.toml", "keys/laptop.secret") as client:
        for token in client.generate("What is the capital of France?"):
            print(token.text, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeshard.runtime.client import AsyncClient, Client
    from edgeshard.runtime.exchange import Result, Token

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Result", "Token", "__version__"]

_HOMES = {
    "AsyncClient": "edgeshard.runtime.client",
    "Client": "edgeshard.runtime.client",
    "Result": "edgeshard.runtime.exchange",
    "Token": "edgeshard.runtime.exchange",
}


def __getattr__(name: str) -> Any:
    # Late, so that `import edgeshard.errors` costs neither ZeroMQ nor numpy.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgeshard' has no attribute {name!r}")

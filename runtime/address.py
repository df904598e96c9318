"""The address that a listener binds: found, and refused where keys are missing."""

from __future__ import annotations

import ipaddress
import socket

from edgeshard.errors import InputError


def binding(endpoint: str, *, has_keys: bool) -> str:
    """An endpoint with a numeric address, ready to be bound.

    Args:
        endpoint: `tcp://HOST:PORT`.
        has_keys: whoever connects must have an admitted key.

    Raises:
        InputError: the host is not known, or lies beyond loopback and there are no keys.
    """
    name, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = _numeric(name.strip("[]"))
    if not has_keys and not ipaddress.ip_address(host).is_loopback:
        raise InputError(
            f"{endpoint} reaches beyond this machine, which needs keys: make them with "
            "`esc keys`, or bind 127.0.0.1"
        )
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _numeric(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError(f"cannot find the address {host!r}: {error.strerror}") from error

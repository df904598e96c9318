"""The cluster file (`cluster.toml`): devices, where they listen, and whom they trust.

A device listens on up to four consecutive ports:

    port      control   the agent; operators and the source speak to it
    port + 1  data      the stage's worker; the stage before it speaks to it
    port + 2  return    the source only; the last stage speaks to it
    port + 3  client    the source only; clients speak to it
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgeshard.schemas.common import Name, Positive, PublicKey, Schema, Transfers

Port = Annotated[int, Meta(ge=1024, le=65532)]
Core = Annotated[int, Meta(ge=0, le=4095)]


class Device(Schema, frozen=True, kw_only=True):
    """A device that runs an agent.

    Attributes:
        address: IP address or host name that the others reach it by.
        port: first of its ports.
        public_key: CURVE key of its agent and workers.
        memory_mib: most memory that its stage may hold, runtime included; None: what is free.
        threads: threads of its stage; None: one for each of `cores`, or the physical cores.
        cores: logical cores that its stage is pinned to, by the system's numbers from 0; the first
            also has the sockets; empty: the system places threads as it likes.
        providers: ONNX Runtime execution providers to use, best first; empty: all it has.
    """

    name: Name
    address: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]
    port: Port
    public_key: PublicKey
    memory_mib: Positive | None = None
    threads: Positive | None = None
    cores: Annotated[tuple[Core, ...], Meta(max_length=1024)] = ()
    providers: tuple[str, ...] = ()

    def endpoint(self, offset: int) -> str:
        """ZeroMQ endpoint of the port `offset` above the first."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp://{host}:{self.port + offset}"

    @property
    def control_endpoint(self) -> str:
        """Where the agent listens."""
        return self.endpoint(0)

    @property
    def data_endpoint(self) -> str:
        """Where the stage's worker listens."""
        return self.endpoint(1)

    @property
    def return_endpoint(self) -> str:
        """Where the coordinator takes tokens from the last stage."""
        return self.endpoint(2)

    @property
    def client_endpoint(self) -> str:
        """Where the coordinator listens for clients."""
        return self.endpoint(3)


class Cluster(Schema, frozen=True, kw_only=True):
    """Devices that work together.

    Attributes:
        source: name of the device that owns the prompts and hosts the coordinator.
        operators: public keys that may profile, deploy and stop.
        clients: public keys that may generate (operators may too).
        transfers: whether a device computes while it sends and receives, which plans assume.
    """

    format: Literal["edgeshard.cluster/1"] = "edgeshard.cluster/1"
    source: Name
    operators: tuple[PublicKey, ...]
    clients: tuple[PublicKey, ...] = ()
    transfers: Transfers = "overlapped"
    devices: Annotated[tuple[Device, ...], Meta(min_length=1)]

    def device(self, name: str) -> Device:
        """The device of that name.

        Raises:
            KeyError: there is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)

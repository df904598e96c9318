"""What does a stage that computes nothing add to a token, its process and sockets included?

    python -m benchmarks.hops --rounds 15

Two chains of real workers over CURVE on loopback, one of SHORT stages and one of LONG, run the
tests' empty double, which gives the same array again. In each round both answer the same request,
in turns; the difference of the times a token, divided by the stages that one has more, is what a
stage and its hop add: unpacking, the stage's checks, packing, the socket and waking up. The order
changes from round to round. Two more chains of the double that adds a few numbers for each unit
show what even that takes where caches are cold.

Beside it stands the floor: rings of SHORT and of LONG processes that pass a frame of the same size
on, with pyzmq and nothing else of ours; with CURVE, and without it, which no chain of ours is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import zmq

from edgeshard.runtime.client import Client
from edgeshard.runtime.wire import Row, Step, encode_numbered

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.runtime_chain import connect, deploy_double, local_cluster
from support.runtime_double import HIDDEN

SHORT, LONG = 3, 6
NUM_TOKENS = 50
LIMIT_SECONDS = 10.0
HEADER = encode_numbered(1000, Step(2**62, 1000, 0, (Row(1, 100),), 1, True))


def token_us(client: Client) -> float:
    """Median microseconds from a token to the next."""
    with client.generate(
        "hello", raw=True, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True
    ) as generation:
        return statistics.median(generation.finish().token_seconds) * 1e6


def port_from(pipe: Connection) -> int:
    """The port that the other end binds."""
    if not pipe.poll(LIMIT_SECONDS):
        raise SystemExit(f"a process of the ring says no port within {LIMIT_SECONDS:.0f} s")
    return int(pipe.recv())


Keys = tuple[bytes, bytes] | None


def sockets(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> list[zmq.Socket[bytes]]:
    """One to be bound and one to be connected; with keys, to one another only."""
    listener, dialer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (listener, dialer):
        socket.linger = 0
        if keys is not None:
            socket.curve_publickey, socket.curve_secretkey = keys
    if keys is not None:
        listener.curve_server, dialer.curve_serverkey = 1, keys[0]
    return [listener, dialer]


def pass_on(pipe: Connection, keys: Keys) -> None:
    """A process of the ring: what comes goes on, as long as the pipe's other end is there."""
    context = zmq.Context()
    listener, dialer = sockets(context, keys)
    pipe.send(listener.bind_to_random_port("tcp://127.0.0.1"))
    dialer.connect(f"tcp://127.0.0.1:{port_from(pipe)}")
    listener.rcvtimeo = 200
    while not pipe.poll():
        try:
            frames = listener.recv_multipart()
        except zmq.Again:
            continue
        dialer.send_multipart(frames[1:])
    context.destroy()


class Ring:
    """As many processes as a chain has stages, and this one, which starts a frame and times it."""

    def __init__(self, num_processes: int, has_keys: bool) -> None:
        spawn = get_context("spawn")
        keys = zmq.curve_keypair() if has_keys else None
        self._pipes, processes = [], []
        for _ in range(num_processes):
            own, other = spawn.Pipe()
            self._pipes.append(own)
            processes.append(spawn.Process(target=pass_on, args=(other, keys), daemon=True))
            processes[-1].start()
        self._processes = processes
        self._context = zmq.Context()
        back, out = sockets(self._context, keys)
        back.rcvtimeo = int(LIMIT_SECONDS * 1000)
        ports = [port_from(pipe) for pipe in self._pipes]
        last = back.bind_to_random_port("tcp://127.0.0.1")
        for pipe, port in zip(self._pipes, [*ports[1:], last], strict=True):
            pipe.send(port)
        out.connect(f"tcp://127.0.0.1:{ports[0]}")
        self._back, self._out = back, out

    def turn_us(self) -> float:
        """Median microseconds that a frame takes around."""
        taken = []
        for _ in range(NUM_TOKENS):
            started = time.perf_counter()
            self._out.send_multipart([HEADER, bytes(4 * HIDDEN)])
            self._back.recv_multipart()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken) * 1e6

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(LIMIT_SECONDS)
        self._context.destroy()


@contextmanager
def ring(num_processes: int, has_keys: bool) -> Iterator[Ring]:
    """A ring, ended on leaving."""
    made = Ring(num_processes, has_keys)
    try:
        yield made
    finally:
        made.close()


def measure(folder: Path, rounds: int) -> list[tuple[float, ...]]:
    """Microseconds of each round: tokens of the chains, turns of the rings; each short, then long.

    First the chains of the empty double, then those of the one that adds; rings with and without
    keys.
    """
    found = []
    with ExitStack() as stack:
        chains = []
        for provider, length in product(("empty", "double"), (SHORT, LONG)):
            cluster = local_cluster(folder / f"{provider}-{length}", num_devices=length)
            stack.enter_context(cluster)
            deploy_double(cluster, provider)
            chains.append(stack.enter_context(connect(cluster)))
        rings = [
            stack.enter_context(ring(length, has_keys))
            for has_keys, length in product((True, False), (SHORT, LONG))
        ]
        for number in range(rounds + 1):
            order = chains if number % 2 else chains[::-1]
            times = {id(client): token_us(client) for client in order}
            turns = [one.turn_us() for one in rings]
            if number:  # the first warms up
                found.append((*(times[id(client)] for client in chains), *turns))
    return found


def each(short: list[float], long: list[float]) -> list[float]:
    """What one of the processes that the long one has more adds, in each round."""
    return [(b - a) / (LONG - SHORT) for a, b in zip(short, long, strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    os.environ["PYTHONPATH"] = sys.path[-1]  # of the workers, where the double is
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rounds)
    empty, empties, sums, more_sums, few, many, few_open, many_open = map(
        list, zip(*found, strict=True)
    )
    rows = {
        f"token, {SHORT} empty stages": empty,
        f"token, {LONG} empty stages": empties,
        "added by an empty stage": each(empty, empties),
        "by one that adds numbers": each(sums, more_sums),
        "of a ring, by a process": each(few, many),
        "the same without CURVE": each(few_open, many_open),
    }
    for name, values in rows.items():
        middle = statistics.median(values)
        print(f"{name:<24} {middle:7.0f} us ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()

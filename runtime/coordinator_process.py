"""A coordinator as an agent's child: reads its config, opens its files, ends with the agent."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from edgeshard.artifacts.store import Store
from edgeshard.errors import EdgeShardError
from edgeshard.runtime import log
from edgeshard.runtime.channel import Network
from edgeshard.runtime.child import Line, Parent, Ready, exit_now, settle
from edgeshard.runtime.coordinator import Coordinator, Stopped
from edgeshard.runtime.coordinator_config import CoordinatorConfig
from edgeshard.runtime.keys import load_keys
from edgeshard.runtime.text import load_text
from edgeshard.schemas import files
from edgeshard.schemas.model import ModelManifest

LAST_WORDS_SECONDS = 0.5


def run_coordinator() -> int:
    """The whole life of a coordinator process; its exit status."""
    parent = Parent()
    log.set_up("coordinator")
    try:
        config = parent.config(CoordinatorConfig)
        parent.tell(Line(progress="reading the tokenizer"))
        store = Store(Path(config.store))
        manifest = files.decode(store.read(config.model), ModelManifest, "the model manifest")
        text = load_text(store, manifest)
        network = Network(load_keys(Path(config.key)))
        try:
            _serve(parent, Coordinator(config, network, manifest, text))
        finally:
            network.close(LAST_WORDS_SECONDS)
    except EdgeShardError as error:
        parent.fail(error)
        return error.exit_code
    return 0


def _serve(parent: Parent, coordinator: Coordinator) -> None:
    signal.signal(signal.SIGTERM, lambda *_: coordinator.stop("the coordinator was stopped"))

    def on_line(line: Line) -> None:
        if line.drain is not None:
            coordinator.drain(line.drain)

    def on_end() -> None:
        timer = threading.Timer(4 * LAST_WORDS_SECONDS, exit_now)
        timer.daemon = True
        timer.start()
        coordinator.stop("the agent of the source is gone")

    parent.follow(on_line, on_end)
    parent.tell(Line(progress="waiting for every stage"))
    try:
        seconds = coordinator.connect()
        parent.tell(Line(progress=f"once around the chain: {seconds * 1000:.1f} ms"))
        log.note("chain.up", "a trace came around the chain", seconds=seconds)
        parent.tell(Line(ready=Ready(trace_seconds=seconds)))
        settle()
        coordinator.serve(parent.tell)
    except Stopped as stopped:
        log.warn("coordinator.stopped", str(stopped))


if __name__ == "__main__":
    sys.exit(run_coordinator())

"""How a checked graph becomes a session of ONNX Runtime.

graph ─► scales multiplied out into a file ─► prompts get an attention of their own ─► session:
packed weights ─► what is left is freed
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as pybind

from edgeshard.artifacts.store import Store
from edgeshard.errors import DeviceError
from edgeshard.runtime.machine import physical_cores
from edgeshard.runtime.prompt_attention import keeps_int8, with_prompt_attention
from edgeshard.runtime.providers import ProviderError, ProviderList
from edgeshard.runtime.scale_file import FOLDER_OPTION, ScaleFile, from_root, scale_file
from edgeshard.schemas.targets import CPU
from edgeshard.system import HAS_FORGET, trim_memory

TILED_ATTENTION_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"
CHUNK_TOKENS = 512
MAX_SCORES_BYTES = 256 * 2**20
# ONNX Runtime's errors have no base of their own; these are all that loading and running raise.
ORT_ERRORS = (
    pybind.EPFail,
    pybind.Fail,
    pybind.InvalidArgument,
    pybind.InvalidGraph,
    pybind.InvalidProtobuf,
    pybind.NoSuchFile,
    pybind.NotImplemented,
    pybind.RuntimeException,
    RuntimeError,
)


def session_options(threads: int, cores: tuple[int, ...] = ()) -> ort.SessionOptions:
    """Options under which shards run and are profiled.

    Threads stop spinning when a step ends: several stages on one machine, or several sessions in
    one process, would steal each other's cores otherwise. While they spin they back off, which
    leaves the memory bus to the thread that works. With `cores`, the thread that calls belongs on
    the first of them and is pinned by its owner; ONNX Runtime's own lie on the others.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    if len(cores) > 1:
        others = ";".join(str(core + 1) for core in cores[1:])  # ONNX Runtime counts from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_backoff_max", "32")
    options.log_severity_level = 3
    return options


def check_runtime(least: str, here: str) -> None:
    """Refuse a shard that an older ONNX Runtime may compute wrong instead of refusing it.

    Args:
        least: release that the shard needs, such as `1.27`; empty: not recorded.
        here: version that is installed.

    Raises:
        DeviceError: it is older.
    """
    numbers = [[int(part) for part in found.split(".")[:2]] for found in (least, here) if found]
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        raise DeviceError(
            f"the shard needs ONNX Runtime {least}, this device has {here}; install a newer one"
        )


def choose_attention(graph: onnx.ModelProto, context: int) -> None:
    """Say which attention kernel the sessions that are created next on the CPU use.

    For queries that share keys the plain one is faster, at the price of holding all scores
    `[heads, chunk, context]` of a prompt chunk; else the tiled one is (docs/adr/0009). ONNX Runtime
    reads the choice from the environment when it creates a kernel; no session option says it.
    """
    os.environ[TILED_ATTENTION_OFF] = "0"
    for node in graph.graph.node:
        if node.op_type == "GroupQueryAttention":
            heads, kv_heads = (
                next(a.i for a in node.attribute if a.name == name)
                for name in ("num_heads", "kv_num_heads")
            )
            if heads > kv_heads and heads * CHUNK_TOKENS * context * 4 <= MAX_SCORES_BYTES:
                os.environ[TILED_ATTENTION_OFF] = "1"
            return


@dataclass(frozen=True)
class Loaded:
    """A session, and what has to live as long as it does."""

    session: ort.InferenceSession
    scales: ScaleFile | None


def load(
    store: Store,
    path: Path,
    graph: onnx.ModelProto,
    providers: ProviderList,
    options: ort.SessionOptions,
) -> Loaded:
    """Open a graph; operators that the first provider lacks run on the ones behind it.

    Args:
        store: holds the graph's weights.
        path: of the graph.
        graph: what was read there and checked.
        providers: what computes it.
        options: see `session_options`.

    Raises:
        DeviceError: ONNX Runtime refuses the graph.
        ProviderError: it has no use of the first provider, and would compute on another one.
    """
    is_alone = providers == [CPU]  # what other providers do with constants was not measured
    scales = scale_file(store, graph) if HAS_FORGET and is_alone else None
    source: str | bytes = str(path)
    if scales is not None or (is_alone and keeps_int8(graph)):
        options.add_session_config_entry(FOLDER_OPTION, str(store.root.resolve()))
        changed = scales.graph() if scales is not None else from_root(graph)
        source = with_prompt_attention(changed).SerializeToString()
    if scales is not None:
        scales.add_to(options)
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except ORT_ERRORS as error:
        raise DeviceError(f"ONNX Runtime cannot load {path.name}: {str(error)[:300]}") from error
    finally:
        if scales is not None:
            scales.settle()
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in session.get_providers():
        raise ProviderError(
            f"{first} does not start on this device, though its ONNX Runtime has it: install "
            "the libraries and drivers that it needs, or leave it out of `providers` in the "
            "cluster file"
        )
    trim_memory()
    return Loaded(session, scales)

"""What this machine is: its cores, memory, ONNX Runtime's providers, the cluster it belongs to."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache

import psutil

from edgeshard.errors import DeviceError
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster
from edgeshard.system import processor_flags, trim_memory, usable_cores

_ASK = (
    "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
)
ASK_SECONDS = 60.0
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def physical_cores() -> int:
    """Physical cores that this process may use."""
    usable = usable_cores()
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def free_bytes() -> int:
    """Memory that could be taken now without swapping."""
    return int(psutil.virtual_memory().available)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def instruction_set() -> str:
    """Machine and the vector extensions that kernels are chosen by."""
    flags = processor_flags()
    return "+".join([platform.machine(), *(flag for flag in ISA_FLAGS if flag in flags)])


def settled_bytes() -> int:
    """Resident memory after giving back what the allocator holds."""
    gc.collect()
    trim_memory()
    return resident_bytes(os.getpid())


@cache
def onnx_runtime() -> tuple[str, tuple[str, ...]]:
    """ONNX Runtime's version and providers, asked in a process of its own to keep ours small.

    Raises:
        DeviceError: it cannot be imported.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=True,
        )
        version, providers = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise DeviceError(
            f"ONNX Runtime cannot be used here: {error}; pip install onnxruntime"
        ) from error
    return str(version), tuple(str(provider) for provider in providers)


def cluster_digest(cluster: Cluster) -> str:
    """What two machines compare to see whether they have read the same cluster file."""
    return hashlib.sha256(files.encode(cluster)).hexdigest()[:16]

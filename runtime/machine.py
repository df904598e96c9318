"""What this machine is: its cores, memory, ONNX Runtime's providers, the cluster it belongs to."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

from edgeshard.errors import DeviceError
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Cluster

_ASK = (
    "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
)
ASK_SECONDS = 60.0
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def physical_cores() -> int:
    """Physical cores that this process may use."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
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
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags.update(line.split(":", 1)[1].split())
                break
    return "+".join([platform.machine(), *(flag for flag in ISA_FLAGS if flag in flags)])


def settled_bytes() -> int:
    """Resident memory after giving back what the allocator holds."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
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

"""What differs between operating systems: the only file with calls that POSIX alone has.

Each function says what it does where the system lacks the call. Run on Linux; written for macOS and
Windows, where nobody has run it (docs/targets.md).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

# Linux reads pages of a shared mapping from their file again; elsewhere that was not looked into.
HAS_FORGET = sys.platform == "linux"
HAS_MODES = os.name == "posix"
# A terminal's Ctrl-C is to reach the agent alone: Windows says so by a flag, POSIX by a session.
NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def open_plain(path: Path) -> int:
    """Open a file for reading bytes and return its handle; where possible, no link is followed."""
    return os.open(path, _PLAIN)


def set_mode(path: Path, handle: int, mode: int) -> None:
    """Set the mode of an open file; where handles have none, of its path."""
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)
    else:
        os.chmod(path, mode)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries; Windows cannot open a folder, and journals its renames."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_user() -> int:
    """Number of the user that we act as; call it only where `HAS_MODES`."""
    return os.geteuid()


def usable_cores() -> int:
    """Logical cores that this process may use; all of them where that cannot be limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pin_thread(core: int) -> None:
    """Keep this thread, and all that it starts from now on, on one logical core.

    Raises:
        OSError: there is no such core, or the system cannot pin threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("this system cannot pin threads to cores")
    os.sched_setaffinity(0, {core})


def core_numbers() -> frozenset[int]:
    """Logical cores that this process may be pinned to; none where the system cannot pin."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def processor_flags() -> frozenset[str]:
    """Instruction set extensions as Linux names them; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def computing_environment() -> dict[str, str]:
    """Environment of a process that computes: weights are to lie in huge pages where glibc can.

    A decode step reads all of them, and in pages of 4 KiB the processor looks up an address for
    every 64 lines. What a person set in GLIBC_TUNABLES stays, and comes last, so that it wins.
    """
    if sys.platform != "linux":
        return dict(os.environ)
    tunables = ("glibc.malloc.hugetlb=1", os.environ.get("GLIBC_TUNABLES", ""))
    return {**os.environ, "GLIBC_TUNABLES": ":".join(filter(None, tunables))}


def trim_memory() -> None:
    """Give back what the allocator holds and nobody uses; nothing where it is not glibc's."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def reserve(handle: int, size_bytes: int) -> None:
    """Give an open file its length, on the disk too, so that writing to its pages cannot fail.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size_bytes)
    else:
        os.ftruncate(handle, size_bytes)


def forget_pages(pages: mmap.mmap) -> None:
    """Let go of the memory of a mapped file, which is read again where it is wanted."""
    if sys.platform == "linux":
        pages.madvise(mmap.MADV_DONTNEED)

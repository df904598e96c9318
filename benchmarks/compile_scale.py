r"""Measure `esc compile` of a large checkpoint beside llama-quantize and the machine's own limits.

    disk read, disk write      sequential, past the page cache where the system lets us
    quantiser                  the same loops on weights that are in memory already
    esc compile                wall time, peak resident memory, and within a memory cgroup
    llama-quantize             F16 to Q4_0 of the same weights, converted by this script

Make the checkpoint with `benchmarks/make_checkpoint.py` and llama-quantize with
`benchmarks/build_peers.py`. The cgroup needs root and the memory controller of cgroup v1.

Example:
    python benchmarks/compile_scale.py --checkpoint build/llama2-7b --work build/scale \
        --quantize build/peers/llama-build/bin/llama-quantize --json scale.json
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
import psutil

from edgeshard.compiler.checkpoint import Checkpoint, open_checkpoint
from edgeshard.compiler.encoding import block_encoding, quantise
from edgeshard.compiler.stored import is_finite, widen

CGROUPS = Path("/sys/fs/cgroup/memory")
PROBE_BYTES = 2 * 2**30
CHUNK_BYTES = 4 * 2**20
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Row:
    """One measurement; a peak of 0 was not taken. `cpu_seconds` tells work from waiting."""

    what: str
    seconds: float
    input_bytes: int
    output_bytes: int
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    remark: str = ""


def timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def disk_limits(folder: Path) -> Iterator[Row]:
    """Write a file past the page cache, then read it so."""
    path = folder / "probe"
    buffer = mmap.mmap(-1, CHUNK_BYTES)  # page-aligned, as direct I/O wants it
    buffer.write(os.urandom(CHUNK_BYTES))
    count = PROBE_BYTES // CHUNK_BYTES

    def write() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        for _ in range(count):
            os.write(handle, buffer)
        os.fsync(handle)
        os.close(handle)

    def read() -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        while os.readv(handle, [buffer]):
            pass
        os.close(handle)

    yield Row("disk write", timed(write), 0, PROBE_BYTES)
    yield Row("disk read", timed(read), PROBE_BYTES, 0)
    path.unlink()


def quantiser_limit(threads: int, bits: int) -> Row:
    """The loops over every weight, on a float16 matrix that stays in memory."""
    values = np.random.default_rng(0).standard_normal((512, 4096), np.float32) * 0.02
    rows = values.astype(np.float16).view(np.uint8)[:128]
    encoding = block_encoding(bits, 4096)
    rounds = 200

    def one() -> None:
        for _ in range(rounds):
            assert is_finite(rows.view(np.float16))
            quantise(widen(rows, "F16"), encoding)

    def many() -> None:
        workers = [threading.Thread(target=one) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    quantise(widen(rows, "F16"), encoding)
    seconds = timed(many)
    num_values = rounds * threads * rows.size // 2
    return Row(f"quantiser alone, int{bits}", seconds, 2 * num_values, num_values * bits // 8)


def drop_cache(paths: Sequence[Path]) -> None:
    """Ask the system to forget the files' pages, so that a run reads the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup that a child may join."""
    group = CGROUPS / f"edgeshard-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


@dataclass(frozen=True)
class Finished:
    """A command that ended well; the peak is of all its processes together, at one moment."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    text: str


def run(command: Sequence[str | Path], group: Path | None = None) -> Finished:
    """Run a command, within a cgroup where one is given."""
    started = time.perf_counter()
    join = f'echo $$ > "{group}/cgroup.procs"; ' if group else ""
    line = ["sh", "-c", f'{join}exec "$@"', "sh", *map(str, command)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        with resident_peak(process.pid) as peak:
            text = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}\n{text[-2000:]}")
    seconds = time.perf_counter() - started
    most = max(peak[0], usage.ru_maxrss * 1024)  # of one process the system knows it exactly
    return Finished(seconds, usage.ru_utime + usage.ru_stime, most, text)


@contextmanager
def resident_peak(pid: int) -> Iterator[list[int]]:
    """Look at a process and its children ten times a second; what they share counts for each."""
    peak, is_over = [0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            with suppress(psutil.Error):
                first = psutil.Process(pid)
                family = [first, *first.children(recursive=True)]
                peak[0] = max(peak[0], sum(one.memory_info().rss for one in family))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def compile_row(
    checkpoint: Checkpoint, store: Path, precision: str, jobs: int, limit_mib: int, remark: str
) -> Row:
    """Compile in a process of its own, from the disk; `limit_mib` 0: in no cgroup."""
    drop_cache(checkpoint.files())
    name = f"{checkpoint.path.name}-{precision}"
    esc: list[str | Path] = [
        sys.executable,
        "-m",
        "edgeshard",
        "compile",
        checkpoint.path,
        "--out",
        store,
    ]
    esc += ["--precision", precision, "--name", name, "--jobs", str(jobs)]
    if limit_mib:
        with memory_cgroup(limit_mib * 2**20) as group:
            done = run(esc, group)
            charged = int((group / "memory.max_usage_in_bytes").read_text())
            remark += f"; cgroup of {limit_mib} MiB, charged at most {charged >> 20} MiB"
    else:
        done = run(esc)
    remark += f"; {done.text.strip().splitlines()[-1][:19]}"
    source = sum(path.stat().st_size for path in checkpoint.files())
    made = sum(p.stat().st_size for p in (store / "blobs").glob("*.safetensors"))
    return _row(f"esc compile {precision}", done, source, made, remark)


def _row(what: str, done: Finished, source: int, made: int, remark: str) -> Row:
    return Row(what, done.seconds, source, made, done.peak_bytes, done.cpu_seconds, remark)


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """The same float16 weights as GGUF, a tensor in memory at a time."""
    config = checkpoint.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = sorted(checkpoint.names())
    for name in names:
        shape = checkpoint.shape(name)
        kind = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(gguf_name(name), shape, kind, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        rows = np.concatenate(list(checkpoint.pieces(name)))
        is_matrix = len(checkpoint.shape(name)) == 2
        writer.write_tensor_data(rows.view(np.float16) if is_matrix else checkpoint.floats(name))
    writer.close()


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("layers."):
        return f"{NAMES[stem]}.weight"
    _, index, rest = stem.split(".", 2)
    return f"blk.{index}.{NAMES[rest]}.weight"


def llama_row(quantize: Path, source: Path, threads: int) -> Row:
    """Quantise with llama.cpp, from the disk."""
    target = source.with_name("Q4_0.gguf")
    drop_cache([source])
    command: list[str | Path] = [
        quantize,
        "--pure",
        "--token-embedding-type",
        "q4_0",
        source,
        target,
        "Q4_0",
    ]
    done = run([*command, str(threads)])
    sizes = source.stat().st_size, target.stat().st_size
    row = _row("llama-quantize Q4_0", done, *sizes, "cold")
    target.unlink()
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| | s | CPU s | read GB | written GB | GB/s in | GB/s out | peak MiB | |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for row in rows:
        rates = [f"{size / row.seconds / 1e9:.2f}" for size in (row.input_bytes, row.output_bytes)]
        lines.append(
            f"| {row.what} | {row.seconds:.1f} | {row.cpu_seconds:.1f} | "
            f"{row.input_bytes / 1e9:.1f} | "
            f"{row.output_bytes / 1e9:.1f} | {rates[0]} | {rates[1]} | {row.peak_bytes >> 20} | "
            f"{row.remark} |"
        )
    return "\n".join(lines)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every row, one after another."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(arguments.checkpoint)
    yield from disk_limits(work)
    for precision in arguments.precisions:
        yield quantiser_limit(arguments.jobs, int(precision.removeprefix("int")))
    for precision in arguments.precisions:
        store = work / f"store-{precision}"
        shutil.rmtree(store, ignore_errors=True)
        yield compile_row(checkpoint, store, precision, arguments.jobs, 0, "cold")
        yield compile_row(checkpoint, store, precision, arguments.jobs, 0, "again")
        if arguments.limit_mib:
            shutil.rmtree(store)
            yield compile_row(
                checkpoint, store, precision, arguments.jobs, arguments.limit_mib, "cold"
            )
        if not arguments.keep:
            shutil.rmtree(store)
    if arguments.quantize:
        source = work / "F16.gguf"
        if not source.exists():
            write_gguf(checkpoint, source)
        yield llama_row(arguments.quantize, source, arguments.jobs)


def main() -> None:
    """Measure, print the table and write the rows."""
    parser = argparse.ArgumentParser(description="Measure esc compile at scale.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--precisions", nargs="+", default=["int4", "int8"])
    parser.add_argument("--quantize", type=Path, help="llama-quantize")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-mib", type=int, default=0, help="also inside such a cgroup")
    parser.add_argument("--keep", action="store_true", help="keep the compiled stores")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

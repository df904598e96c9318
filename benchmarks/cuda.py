"""Shards on a CUDA provider: parity with the CPU, and tokens per second.

python benchmarks/cuda.py --folder .demo/cuda [--provider CPUExecutionProvider]

Needs `onnxruntime-gpu` in place of `onnxruntime`. With the CPU provider it is a dry run: every step
is taken, parity is then that of a shard with itself. Each row: a shard of the whole model, compiled
here; the same shard on the CPU is what its logits are compared with, over the same text.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.local_run import default_checkpoint
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas.common import FloatType, Precision, Target
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import CPU, CUDA

KINDS: list[tuple[Precision, FloatType, Target]] = [
    ("fp16", "float16", "ort"),
    ("int4", "float16", "ort"),
    ("int8", "float16", "ort"),
    ("fp32", "float32", "portable"),
]
PROMPT, NEW, CONTEXT, ROUNDS = 128, 64, 256, 5


@dataclass(frozen=True)
class Row:
    """What was seen of one shard.

    Attributes:
        relative: root mean square of the difference to the CPU's logits over that of the CPU's.
        top1: share of positions whose likeliest token is the CPU's.
        prefill, decode: tokens per second, median of the rounds; of the CPU for comparison.
    """

    target: str
    precision: str
    activations: str
    relative: float
    top1: float
    prefill: float
    decode: float
    cpu_prefill: float
    cpu_decode: float


def open_shard(store: Store, shard: ShardManifest, provider: str) -> ShardSession:
    """Open with room for one sequence."""
    return ShardSession.open(store, shard, provider=provider, context=CONTEXT)


def logits(session: ShardSession, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits at every position of the prompt, and of a decode step behind it."""
    first = session.run(0, [0], tokens[:, :-1], every_position=True).copy()
    last = session.run(0, [tokens.shape[1] - 1], tokens[:, -1:], every_position=True)
    both: NDArray[np.float32] = np.concatenate([first, last], axis=1)[0]
    return both


def rates(session: ShardSession, tokens: NDArray[np.int64]) -> tuple[float, float]:
    """Tokens per second of the prompt and of decoding greedily behind it."""
    prefill, decode = [], []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        result = session.run(0, [0], tokens)
        prefill.append(tokens.shape[1] / (time.perf_counter() - started))
        started = time.perf_counter()
        for position in range(tokens.shape[1], tokens.shape[1] + NEW):
            token = np.array([[int(result[0].argmax())]])
            result = session.run(0, [position], token)
        decode.append(NEW / (time.perf_counter() - started))
    return float(np.median(prefill[1:])), float(np.median(decode[1:]))  # the first one warms up


def measure(
    folder: Path,
    checkpoint: Path,
    provider: str,
    precision: Precision,
    activations: FloatType,
    target: Target,
) -> Row:
    """Compile, fuse, compare and time one kind of shard."""
    store = Store(folder / "store")
    made = compile_model(
        checkpoint, store, precision=precision, activations=activations, target=target
    )
    shard, _ = fuse(store, made.manifest, made.blob, 0, len(made.manifest.units))
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, made.manifest.vocab_size, (1, PROMPT))
    found = []
    for one in (CPU, provider):
        session = open_shard(store, shard, one)
        found.append((logits(session, tokens), *rates(session, tokens)))
        session.close()
    (expected, cpu_prefill, cpu_decode), (seen, prefill, decode) = found
    difference = np.sqrt(np.mean((seen - expected) ** 2)) / np.sqrt(np.mean(expected**2))
    return Row(
        target=target,
        precision=precision,
        activations=activations,
        relative=float(difference),
        top1=float(np.mean(seen.argmax(-1) == expected.argmax(-1))),
        prefill=prefill,
        decode=decode,
        cpu_prefill=cpu_prefill,
        cpu_decode=cpu_decode,
    )


def main() -> None:
    """Measure every kind and print a table; `cuda.json` in the folder has the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--provider", default=CUDA)
    arguments = parser.parse_args()
    if arguments.provider not in ort.get_available_providers():
        parser.error(
            f"no {arguments.provider} here, only {', '.join(ort.get_available_providers())}; "
            f"install onnxruntime-gpu, or give --provider {CPU} for a dry run"
        )
    checkpoint = arguments.checkpoint or default_checkpoint()
    rows = [measure(arguments.folder, checkpoint, arguments.provider, *kind) for kind in KINDS]
    print(
        f"{arguments.provider}, ONNX Runtime {ort.__version__}, prompt {PROMPT}, {NEW} new tokens"
    )
    print(
        "| target | weights | activations | relative | top-1 | prefill | decode "
        "| CPU prefill | decode |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row.target} | {row.precision} | {row.activations} "
            f"| {row.relative:.2e} | {row.top1:.1%} "
            f"| {row.prefill:.0f} | {row.decode:.1f} | {row.cpu_prefill:.0f} "
            f"| {row.cpu_decode:.1f} |"
        )
    report = {"provider": arguments.provider, "runtime": ort.__version__, "rows": rows}
    plain = report | {"rows": [asdict(row) for row in rows]}
    (arguments.folder / "cuda.json").write_text(json.dumps(plain, indent=2), "utf-8")


if __name__ == "__main__":
    main()

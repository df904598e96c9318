"""Which ONNX Runtime releases run `portable` and `tensorrt` shards, on their CPU provider.

python benchmarks/old_runtimes.py --folder .demo/old-runtimes

Makes an environment for each release, compiles a model for every kind, runs its shard there in
plain ONNX Runtime and compares the logits with those of the release installed here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.local_run import default_checkpoint
from edgeshard.schemas.common import Precision, Target

RELEASES = ("1.15.1", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.22.1")
KINDS: list[tuple[Precision, Target]] = [
    *(("fp32", "portable"), ("fp16", "portable"), ("int8", "portable"), ("int4", "portable")),
    *(("fp32", "tensorrt"), ("fp16", "tensorrt"), ("int8", "tensorrt")),
    *(("fp32", "ort"), ("int4", "ort")),
    *(("mixed", "portable"), ("mixed", "ort")),
]
# Runs in the other environment: onnxruntime and numpy, nothing of ours.
RUN = """
import json, sys
import numpy as np
import onnxruntime as ort
TYPES = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16}
KNOWN = {"token_ids": [[5, 6, 7]], "position_ids": [[0, 1, 2]], "seqlens_k": [2],
         "total_sequence_length": [3], "logit_positions": [2]}
options = ort.SessionOptions()
options.log_severity_level = 4
try:
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    feeds = {}
    for wanted in session.get_inputs():
        kind = TYPES[wanted.type[7:-1]]
        shape = [{"B": 1, "past": 0, "C": 16}.get(axis, axis) for axis in wanted.shape]
        known = KNOWN.get(wanted.name)
        feeds[wanted.name] = np.zeros(shape, kind) if known is None else np.array(known, kind)
    print(json.dumps(session.run(["logits"], feeds)[0].ravel().tolist()))
except Exception as error:
    print(json.dumps(str(error)))
"""
TOLERANCE = 2e-2  # of the largest logit; float16 kernels of releases differ by less


def environment(folder: Path, release: str) -> Path:
    """The interpreter of an environment with a release, made where it is missing."""
    home = folder / release
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        needs = [f"onnxruntime=={release}", "numpy<2"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *needs], check=True)
        (home / "ready").touch()
    return python


def run(python: Path, graph: Path) -> list[float] | str:
    """Logits of a shard, or why there are none."""
    done = subprocess.run(
        [str(python), "-c", RUN, str(graph)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: list[float] | str = json.loads(done.stdout.splitlines()[-1])
    return found


def verdict(found: list[float] | str, expected: list[float] | str) -> str:
    """In a few words."""
    if isinstance(found, str) or isinstance(expected, str):
        return "refused"
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    return "runs" if worst <= TOLERANCE * max(map(abs, expected)) else f"differs by {worst:.2g}"


def main() -> None:
    """Print a table of kinds and releases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=None, help="A small one.")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or default_checkpoint()
    pythons = [environment(arguments.folder, release) for release in RELEASES]
    store = Store(arguments.folder / "store")
    print("| weights | target | recorded | " + " | ".join(RELEASES) + " |")
    print("|---|---|---" + "|---" * len(RELEASES) + "|")
    for precision, target in KINDS:
        made = compile_model(checkpoint, store, precision=precision, target=target)
        shard, _ = fuse(store, made.manifest, made.blob, 0, len(made.manifest.units))
        graph = store.path(shard.graph)
        expected = run(Path(sys.executable), graph)
        cells = [verdict(run(python, graph), expected) for python in pythons]
        print(f"| {precision} | {target} | {shard.min_runtime} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""Run one unit of a store with plain ONNX Runtime; nothing of EdgeShard is imported.

python examples/plain_onnxruntime.py STORE MODEL [UNIT]

A store is a folder of files: `models/MODEL.json` names the manifest, the manifest names the units,
and a unit's graph finds its weights beside it. The inputs here are made up: four positions of one
sequence, and a cache that is empty.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

NUM_TOKENS = 4
# Free axes: batch, new positions, positions with logits, places in the cache, positions in it.
AXES = {"B": 1, "S": NUM_TOKENS, "P": 1, "C": 16, "past": 0}
TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
KNOWN = {
    "token_ids": [list(range(1, NUM_TOKENS + 1))],
    "position_ids": [list(range(NUM_TOKENS))],
    "seqlens_k": [NUM_TOKENS - 1],
    "total_sequence_length": [NUM_TOKENS],
    "logit_positions": [NUM_TOKENS - 1],
}


def open_unit(store: Path, model: str, unit: str) -> ort.InferenceSession:
    """Follow the names in the store to a unit's graph, and open it where it lies."""
    blobs = store / "blobs"
    name = json.loads((store / "models" / f"{model}.json").read_text())
    manifest = json.loads((blobs / filename(name)).read_text())
    graphs = {one["name"]: blobs / filename(one["graph"]) for one in manifest["units"]}
    return ort.InferenceSession(str(graphs[unit]), providers=["CPUExecutionProvider"])


def filename(blob: dict[str, Any]) -> str:
    """A blob's file name: its digest and what it is."""
    return str(blob["digest"]).removeprefix("sha256:") + str(blob["suffix"])


def make_input(wanted: Any) -> NDArray[Any]:  # ONNX Runtime ships no types
    """An input that the graph takes: known positions, zeros for caches, noise for hidden states."""
    kind = TYPES[wanted.type]
    if wanted.name in KNOWN:
        return np.array(KNOWN[wanted.name], kind)
    shape = [AXES.get(axis, axis) for axis in wanted.shape]
    if wanted.name.startswith("hidden."):
        return np.random.default_rng(0).standard_normal(shape).astype(kind)
    return np.zeros(shape, kind)


def main(store: str | Path, model: str, unit: str = "block.0") -> dict[str, NDArray[Any]]:
    """Run the unit once and print what goes in and what comes out."""
    session = open_unit(Path(store), model, unit)
    inputs = {wanted.name: make_input(wanted) for wanted in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, inputs), strict=True))
    for title, tensors in (("in", inputs), ("out", outputs)):
        for name, tensor in tensors.items():
            print(f"{title:<4}{name:<24}{tensor.dtype.name:<9}{list(tensor.shape)}")
    return outputs


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Time ONNX Runtime's block-quantised product: block sizes, with and without zero points.

    python benchmarks/block_kernels.py [--threads N]

`MatMulNBits` at accuracy level 4, as the `ort` target writes it, on random weights. A variant's
time is the median over rounds in turns; ratios are to the symmetric block of 64 in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SHAPES = ((576, 1536), (1536, 576), (4096, 4096))
ROWS = (1, 64)
VARIANTS = tuple(
    (bits, block, zero) for bits in (4,) for block in (16, 32, 64, 128) for zero in (0, 1)
)
VARIANTS += ((8, 32, 0), (8, 64, 0))


def session(
    inputs: int, outputs: int, bits: int, block: int, zero_points: bool, threads: int
) -> ort.InferenceSession:
    """A graph of one product with weights of its own."""
    random = np.random.default_rng(0)
    blocks = -(-inputs // block)
    weights = {
        "codes": random.integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8),
        "scales": random.random((outputs, blocks), np.float32) / 100,
    }
    if zero_points:
        weights["zeros"] = random.integers(0, 256, (outputs, (blocks + 1) // 2), np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *weights],
        ["y"],
        domain="com.microsoft",
        **{"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4},
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("M", inputs))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("M", outputs))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def microseconds(run: ort.InferenceSession, x: np.ndarray, repeats: int) -> float:
    """Median time of a step."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Measure every shape and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    print("| inputs × outputs | rows | bits | block | zero points | µs | ratio |")
    print("|---|--:|--:|--:|---|--:|--:|")
    for inputs, outputs in SHAPES:
        fitting = [v for v in VARIANTS if inputs % v[1] == 0]
        sessions = [
            session(inputs, outputs, b, k, bool(z), arguments.threads) for b, k, z in fitting
        ]
        for rows in ROWS:
            x = np.random.default_rng(1).standard_normal((rows, inputs), np.float32)
            repeats = max(3, arguments.repeats // rows)
            samples = [
                [microseconds(s, x, repeats) for s in sessions] for _ in range(arguments.rounds)
            ]
            base = fitting.index((4, 64, 0))
            for index, (bits, block, zero) in enumerate(fitting):
                median = statistics.median(row[index] for row in samples)
                ratio = statistics.median(row[index] / row[base] for row in samples)
                print(
                    f"| {inputs} × {outputs} | {rows} | {bits} | {block} | "
                    f"{'yes' if zero else 'no'} | {median:.0f} | {ratio:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""How long one decode step's attention takes in ONNX Runtime's CPU kernels (docs/adr/0009).

Compares, for a model's head counts, the tiled and the plain kernel, with the scale of the scores
as the operator's attribute or moved into the rotary tables (`scale` 1). A graph of several
attentions in a row, each with keys and values of its own, so that caches see what a model shows
them. Variants take turns; medians with the 10th and 90th percentile of microseconds per attention.

Example:
    python benchmarks/attention.py --heads 9 --kv-heads 3 --contexts 64,1000,1900
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeshard.runtime.loading import TILED_ATTENTION_OFF, session_options

VARIANTS = {
    "tiled, scale as attribute": (True, None),
    "tiled, scale in the tables": (True, 1.0),
    "plain, scale as attribute": (False, None),
    "plain, scale in the tables": (False, 1.0),
}


def graph(
    heads: int, kv_heads: int, size: int, capacity: int, count: int, scale: float | None
) -> bytes:
    """`count` attentions in a row, keys and values in place, rotary tables that turn nothing."""
    cache = [1, kv_heads, capacity, size]
    tables = {"cos": np.ones, "sin": np.zeros}
    weights = [
        numpy_helper.from_array(make((capacity, size // 2), np.float32), name)
        for name, make in tables.items()
    ]
    inputs = [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("key", TensorProto.FLOAT, [1, 1, kv_heads * size]),
        helper.make_tensor_value_info("x.0", TensorProto.FLOAT, [1, 1, heads * size]),
    ]
    outputs, nodes = [], []
    attributes = {} if scale is None else {"scale": scale}
    for index in range(count):
        past, present = ([f"{kind}.{part}.{index}" for part in "kv"] for kind in ("past", "new"))
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in past]
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in present]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [f"x.{index}", "key", "key", *past, "seqlens_k", "total", "cos", "sin"],
                [f"x.{index + 1}", *present],
                domain="com.microsoft",
                num_heads=heads,
                kv_num_heads=kv_heads,
                do_rotary=1,
                **attributes,
            )
        )
    last = f"x.{count}"
    outputs.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 1, heads * size]))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_graph(nodes, "attention", inputs, outputs, weights)
    model: onnx.ModelProto = helper.make_model(body, opset_imports=opsets, ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def stepper(session: ort.InferenceSession, context: int) -> Callable[[], None]:
    """A decode step at `context` positions; the arrays live as long as the function."""
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "seqlens_k": np.full(1, context, np.int32),
        "total": np.full(1, context + 1, np.int32),
    }
    binding = session.io_binding()
    for item in session.get_inputs():
        if item.name not in arrays:
            arrays[item.name] = generator.standard_normal(item.shape).astype(np.float32)
        array = arrays[item.name]
        binding.bind_input(item.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for item in session.get_outputs():
        past = item.name.replace("new.", "past.")
        array = arrays.setdefault(past, np.zeros(item.shape, np.float32))
        binding.bind_output(item.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return lambda: session.run_with_iobinding(binding) if arrays else None


def main() -> None:
    """Print one line for each context and variant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--contexts", default="64,1000,1900")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    contexts = [int(text) for text in given.contexts.split(",")]
    capacity = max(contexts) + 1
    sessions = {}
    for name, (tiled, scale) in VARIANTS.items():
        os.environ[TILED_ATTENTION_OFF] = "0" if tiled else "1"
        data = graph(given.heads, given.kv_heads, given.head_size, capacity, given.blocks, scale)
        options = session_options(given.threads)
        sessions[name] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for context in contexts:
        steps = {name: stepper(session, context) for name, session in sessions.items()}
        samples: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(given.rounds):
            for name, step in steps.items():
                step()
                started = time.perf_counter()
                step()
                samples[name].append((time.perf_counter() - started) / given.blocks * 1e6)
        for name, times in samples.items():
            low, middle, high = np.percentile(times, (10, 50, 90))
            print(f"context {context:5}  {name:27} {middle:6.0f} us  [{low:.0f}, {high:.0f}]")


if __name__ == "__main__":
    main()

"""What the layout of weights costs in a decode step of a whole model (docs/adr/0023).

Builds graphs of SmolLM2-135M's shape with random weights, as the `ort` target lowers it, that
differ in one thing each: the size of blocks, zero points, gate and up as one product, offsets
(Q4_1). All are loaded at once and take turns, so a machine that drifts does so for all; a step
reads every weight from memory, which a product that is timed alone does not. Prints the median
milliseconds of a step and the median of the ratios to the first variant within a round.

Example:
    python benchmarks/decode_step.py --contexts 64,1000 --rounds 8
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeshard.runtime.loading import TILED_ATTENTION_OFF, session_options

BLOCKS, HIDDEN, FFN, VOCAB, HEADS, KV_HEADS, HEAD = 30, 576, 1536, 49152, 9, 3, 64
CAPACITY = 2048
MICROSOFT = "com.microsoft"
STEPS, WARM_UP = 24, 4


@dataclass(frozen=True)
class Variant:
    """How weights lie."""

    block: int
    zeros: bool = True
    joined: bool = True
    offsets: bool = False


VARIANTS = {
    "blocks of 32, zero points, gate and up apart": Variant(32, joined=False),
    "blocks of 32, zero points": Variant(32),
    "blocks of 32": Variant(32, zeros=False),
    "blocks of 64, zero points, gate and up apart": Variant(64, joined=False),
    "blocks of 64, zero points": Variant(64),
    "blocks of 64": Variant(64, zeros=False),
    "offsets (Q4_1), gate and up apart": Variant(32, zeros=False, joined=False, offsets=True),
    "offsets (Q4_1)": Variant(32, zeros=False, offsets=True),
}


class Graph:
    """The nodes and random weights of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.sums: dict[str, str] = {}

    def weight(self, name: str, values: NDArray[np.generic]) -> str:
        """A weight, kept once."""
        self.weights.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def floats(self, name: str, *shape: int) -> str:
        """Small random floats."""
        return self.weight(name, self.random.random(shape, np.float32) * np.float32(0.002))

    def op(
        self, kind: str, inputs: list[str], output: str, domain: str = "", **more: object
    ) -> str:
        """A node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **more))
        return output

    def product(self, x: str, rows: int, columns: int, name: str) -> str:
        """`MatMulNBits`, with offsets where the variant has them."""
        block, blocks = self.variant.block, columns // self.variant.block
        codes = self.random.integers(0, 255, (rows, blocks, block // 2), dtype=np.uint8)
        inputs = [x, self.weight(f"{name}.codes", codes), self.floats(f"{name}.s", rows, blocks)]
        if self.variant.zeros:
            zeros = np.full((rows, -(-blocks // 2)), 0x88, np.uint8)
            inputs.append(self.weight(f"{name}.zeros", zeros))
        sizes = {"K": columns, "N": rows, "bits": 4, "block_size": block, "accuracy_level": 4}
        y = self.op("MatMulNBits", inputs, name, MICROSOFT, **sizes)
        if not self.variant.offsets:
            return y
        if x not in self.sums:
            shape = self.weight(f"shape.{blocks}", np.array([0, 0, blocks, block]))
            split = self.op("Reshape", [x, shape], f"{x}.split")
            axes = self.weight("last", np.array([-1]))
            self.sums[x] = self.op("ReduceSum", [split, axes], f"{x}.sums", keepdims=0)
        offsets = self.floats(f"{name}.offsets", blocks, rows)
        shift = self.op("MatMul", [self.sums[x], offsets], f"{name}.shift")
        return self.op("Add", [y, shift], f"{name}.shifted")

    def gates(self, x: str, at: str) -> tuple[str, str]:
        """Gate and up, as one product or as two."""
        if not self.variant.joined:
            return (
                self.product(x, FFN, HIDDEN, f"{at}.gate"),
                self.product(x, FFN, HIDDEN, f"{at}.up"),
            )
        both = self.product(x, 2 * FFN, HIDDEN, f"{at}.both")
        halves = [f"{at}.gate", f"{at}.up"]
        self.nodes.append(helper.make_node("Split", [both], halves, axis=-1, num_outputs=2))
        return halves[0], halves[1]

    def decoder_block(self, x: str, at: str) -> str:
        """One block; the cache of `at` is `at.past_k` and so on."""
        norm = self.weight("norm", np.ones(HIDDEN, np.float32))
        kind = "SimplifiedLayerNormalization"
        normed = self.op(kind, [x, norm], f"{at}.n", axis=-1, epsilon=1e-5)
        packed = self.product(normed, HIDDEN + 2 * KV_HEADS * HEAD, HIDDEN, f"{at}.qkv")
        angles = [
            self.weight(name, np.full((CAPACITY, HEAD // 2), value, np.float32))
            for name, value in (("cos", 1), ("sin", 0))
        ]
        inputs = [packed, "", "", f"{at}.past_k", f"{at}.past_v", "seqlens", "total", *angles]
        outputs = [f"{at}.attention", f"{at}.present_k", f"{at}.present_v"]
        heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1, "scale": 1.0}
        self.nodes.append(
            helper.make_node("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **heads)
        )
        mixed = self.product(outputs[0], HIDDEN, HIDDEN, f"{at}.o")
        outputs = [f"{at}.n2", "", "", f"{at}.residual"]
        skip = helper.make_node(
            "SkipSimplifiedLayerNormalization", [x, mixed, norm], outputs, domain=MICROSOFT
        )
        self.nodes.append(skip)
        gate, up = self.gates(outputs[0], at)
        share = self.op("Sigmoid", [gate], f"{at}.share")
        inner = self.op("Mul", [self.op("Mul", [gate, share], f"{at}.silu"), up], f"{at}.inner")
        down = self.product(inner, HIDDEN, FFN, f"{at}.down")
        return self.op("Add", [outputs[3], down], f"{at}.out")

    def model(self) -> bytes:
        """The whole model."""
        cache = [1, KV_HEADS, CAPACITY, HEAD]
        x = self.op("Gather", [self.floats("embedding", VOCAB, HIDDEN), "token"], "x")
        names = [f"b{index}" for index in range(BLOCKS)]
        for at in names:
            x = self.decoder_block(x, at)
        self.op("Identity", [self.product(x, VOCAB, HIDDEN, "head")], "logits")
        info = helper.make_tensor_value_info
        inputs = [
            info("token", TensorProto.INT64, [1, 1]),
            info("seqlens", TensorProto.INT32, [1]),
            info("total", TensorProto.INT32, [1]),
            *(info(f"{at}.past_{p}", TensorProto.FLOAT, cache) for at in names for p in "kv"),
        ]
        outputs = [
            info(f"{at}.present_{p}", TensorProto.FLOAT, cache) for at in names for p in "kv"
        ]
        outputs.append(info("logits", TensorProto.FLOAT, [1, 1, VOCAB]))
        graph = helper.make_graph(self.nodes, "step", inputs, outputs, list(self.weights.values()))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        data: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=9
        ).SerializeToString()
        return data


class Decoder:
    """A variant's session with its cache bound in place."""

    def __init__(self, variant: Variant, threads: int) -> None:
        os.environ[TILED_ATTENTION_OFF] = "1"
        options = session_options(threads)
        data = Graph(variant).model()
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        whole = np.zeros((2 * BLOCKS, 1, KV_HEADS, CAPACITY, HEAD), np.float32)
        caches: Iterator[NDArray[np.float32]] = iter(whole)
        self.arrays: dict[str, NDArray[np.generic]] = {
            "token": np.array([[100]]),
            "seqlens": np.zeros(1, np.int32),
            "total": np.zeros(1, np.int32),
        }
        for item in self.session.get_inputs():
            array = self.arrays[item.name] if item.name in self.arrays else next(caches)
            self.arrays[item.name] = array
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self.binding.bind_input(item.name, *place)
            if "past" in item.name:
                self.binding.bind_output(item.name.replace("past", "present"), *place)
        self.binding.bind_output("logits", "cpu")

    def step(self, context: int) -> float:
        """Seconds of a step behind `context` positions."""
        self.arrays["seqlens"][...] = context
        self.arrays["total"][...] = context + 1
        started = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return time.perf_counter() - started


def main() -> None:
    """Print a line for each context and variant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contexts", default="64,1000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    decoders = {name: Decoder(variant, given.threads) for name, variant in VARIANTS.items()}
    for context in map(int, given.contexts.split(",")):
        times: dict[str, list[float]] = {name: [] for name in decoders}
        for _ in range(given.rounds):
            for name, decoder in decoders.items():
                seconds = [decoder.step(context) for _ in range(WARM_UP + STEPS)][WARM_UP:]
                times[name].append(float(np.median(seconds)) * 1e3)
        first = np.array(next(iter(times.values())))
        for name, found in times.items():
            low, middle, high = np.percentile(found, (0, 50, 100))
            ratio = float(np.median(np.array(found) / first))
            print(
                f"context {context:5}  {name:45} {middle:6.2f} ms [{low:.2f}, {high:.2f}]  "
                f"{ratio:.3f} of the first"
            )


if __name__ == "__main__":
    main()

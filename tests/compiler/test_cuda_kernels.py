"""`ort` graphs against ONNX Runtime's published list of CUDA kernels; CUDA itself is not run."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.schemas.common import FloatType, Precision
from support.cuda_kernels import without_kernel
from support.gguf_file import MIXED, write_gguf
from support.tiny_llama import folder


def _graph(
    path: Path,
    store: Store,
    precision: Precision,
    activations: FloatType,
    bits: float | None = None,
) -> onnx.ModelProto:
    """The whole model as one shard."""
    made = compile_model(path, store, precision=precision, activations=activations, bits=bits)
    shard, _ = fuse(store, made.manifest, made.blob, 0, len(made.manifest.units))
    return onnx.load(str(store.path(shard.graph)), load_external_data=False)


@pytest.mark.parametrize(
    ("precision", "activations"),
    [
        ("fp16", "float16"),
        ("bf16", "bfloat16"),
        ("int8", "float16"),
        ("int4", "float16"),
        ("int4", "bfloat16"),
    ],
)
def test_in_16_bits_every_operator_has_a_kernel(
    precision: Precision, activations: FloatType, tmp_path: Path
) -> None:
    graph = _graph(folder("grouped"), Store(tmp_path), precision, activations)

    assert {node.op_type for node in graph.graph.node} > {"GroupQueryAttention"}
    assert without_kernel(graph) == set()


def test_a_files_own_blocks_have_kernels(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", MIXED).path

    assert without_kernel(_graph(path, Store(tmp_path / "store"), "stored", "float16")) == set()


def test_of_mixed_only_the_rows_of_6_bits_go_to_the_cpu(tmp_path: Path) -> None:
    """A few tokens' codes; the matrices of 6 bits are constants."""
    store = Store(tmp_path)
    eight, six = (_graph(folder("grouped"), store, "mixed", "float16", bits) for bits in (7.5, 6.5))

    assert without_kernel(eight) == set()
    assert without_kernel(six) == {"BitShift", "BitwiseOr"}
    assert "MatMulNBits" in {node.op_type for node in six.graph.node}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_in_float32_attention_has_none(precision: Precision, tmp_path: Path) -> None:
    """Why `schemas/targets.py` refuses it there."""
    graph = _graph(folder("grouped"), Store(tmp_path), precision, "float32")

    assert without_kernel(graph) == {"GroupQueryAttention"}

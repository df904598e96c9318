"""The examples run as they are: against a chain of doubles, and on a compiled tiny model."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeshard.runtime.local import LocalCluster
from edgeshard.schemas.common import Precision, Target
from support.runtime_chain import connect, deploy_double, local_cluster
from support.runtime_double import expected

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with local_cluster(tmp_path_factory.mktemp("examples")) as cluster:
            deploy_double(cluster)
            yield cluster


def test_every_example_has_a_test() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"generate", "generate_async", "plain_onnxruntime", "plain_shard"}


def test_generate_has_ten_lines_of_code() -> None:
    lines = (EXAMPLES / "generate.py").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.strip() and '"""' not in line]) <= 10


def test_generate_prints_the_answer(
    chain: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    example("generate").main(str(chain.cluster_path), str(chain.key_path), "hi")
    with connect(chain) as client:
        text = client.generate("hi", max_tokens=64).finish().text
    assert text
    assert capsys.readouterr().out == f"{text}\n"


def test_generate_async_gives_every_prompt_its_own_answer(
    chain: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("generate_async")
    prompts = ["one", "two", "three"]  # one more than the double has slots
    place = str(chain.cluster_path), str(chain.key_path)
    results = asyncio.run(module.ask(*place, prompts))
    answers = [expected(prompt, 32) for prompt in (b"one?", b"two?", b"three?")]
    assert [list(result.token_ids) for result in results] == answers
    module.main(*place, prompts[:1])
    assert capsys.readouterr().out.startswith("one\n")


@pytest.mark.parametrize("name", ["plain_onnxruntime", "plain_shard"])
def test_plain_examples_import_nothing_of_ours(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if "edgeshard" in line]


@pytest.mark.parametrize(("precision", "target"), [("int4", "ort"), ("fp32", "portable")])
def test_plain_onnxruntime_runs_every_kind_of_unit(precision: Precision, target: Target) -> None:
    from support.tiny_llama import compiled  # torch: only where it is needed

    model = compiled("grouped", precision, target)
    manifest = model.manifest
    module = example("plain_onnxruntime")
    wanted = {
        "embedding": ("hidden.1", (1, 4, manifest.hidden_size)),
        "block.0": ("hidden.2", (1, 4, manifest.hidden_size)),
        "head": ("logits", (1, 1, manifest.vocab_size)),
    }
    for unit, (name, shape) in wanted.items():
        outputs = module.main(model.store.root, manifest.name, unit)
        assert outputs[name].shape == shape
        assert np.isfinite(outputs[name]).all()
        if unit == "block.0":
            assert np.abs(outputs["block.0.present_key"]).sum() > 0


@pytest.mark.parametrize(
    ("precision", "target"),
    [("fp32", "ort"), ("int4", "ort"), ("fp16", "portable"), ("int8", "tensorrt")],
)
def test_a_shard_in_plain_onnxruntime_gives_our_tokens(
    precision: Precision, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeshard.artifacts.fuse import fuse
    from support.tiny_llama import compiled  # torch: only where it is needed

    model = compiled("grouped", precision, target)
    shard, _ = fuse(model.store, model.manifest, model.blob, 0, len(model.manifest.units))
    prompt = [11, 5, 64, 127, 1]
    found = example("plain_shard").decode(str(model.store.path(shard.graph)), 8, prompt)
    with model.chain() as chain:
        assert found == chain.greedy(prompt, 8)

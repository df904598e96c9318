"""A chain whose second stage runs on OpenVINO, in an agent of another environment.

`make openvino-test` makes that environment, `.venv-openvino`, and runs this; without it the tests
are skipped, and say so. Tolerance: 1e-4 of the spread of the logits, 3e-2
for float16, whose sums the two providers keep in other types.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.compiler.compile import compile_model
from edgeshard.planner.units import Workload, provider_costs
from edgeshard.runtime.client import Client
from edgeshard.runtime.deploy import Deployment, deploy
from edgeshard.runtime.local import LocalCluster
from edgeshard.runtime.profile_cluster import profile_cluster
from edgeshard.schemas.common import Precision
from edgeshard.schemas.profile import DeviceProfile
from edgeshard.schemas.targets import CPU, OPENVINO
from support.runtime_chain import plan_of
from support.runtime_double import byte_tokenizer
from support.tiny_llama import CONTEXT, CompiledModel, compiled, folder

PYTHON = Path(__file__).parents[2] / ".venv-openvino" / "bin" / "python"
TOLERANCE, HALF_TOLERANCE = 1e-4, 3e-2
PROMPT = "a chain of two"
CUT = 2
RUN = """
import sys
from pathlib import Path
import numpy as np
from edgeshard.artifacts.store import Store
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas import files
from edgeshard.schemas.common import Blob
store, shard, values, out, provider = sys.argv[1:]
store = Store(Path(store))
shard = store.shard(files.read(Path(shard), Blob))
session = ShardSession.open(store, shard, provider=provider, threads=1, context=256)
values = np.load(values)
first = session.run(0, [0], values[:, :9], every_position=True)
rest = session.run(0, [9], values[:, 9:], every_position=True)
np.save(out, np.concatenate([first, rest], 1))
"""
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-openvino here; `make openvino-test` makes it"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    store = Store(tmp_path_factory.mktemp("store"))
    made = compile_model(folder("grouped"), store, precision="fp32", variants=("portable",))
    tokenizer = store.put(byte_tokenizer().to_str().encode(), ".json")
    manifest = msgspec.structs.replace(made.manifest, tokenizer=tokenizer)
    return CompiledModel(store, manifest, store.put_model(manifest))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    home = tmp_path_factory.mktemp("openvino")
    with LocalCluster(home, 2, threads=1, pythons={"device-1": str(PYTHON)}) as found:
        yield found


@pytest.fixture(scope="module")
def profiles(model: CompiledModel, cluster: LocalCluster) -> tuple[DeviceProfile, ...]:
    """Taken before anything is deployed: a device that runs a stage cannot be measured."""
    return profile_cluster(
        model.store, model.manifest, model.blob, cluster.cluster, cluster.keys
    ).devices


@pytest.fixture(scope="module")
def deployment(
    model: CompiledModel, cluster: LocalCluster, profiles: tuple[DeviceProfile, ...]
) -> Deployment:
    plan = plan_of(model.blob.digest, [d.name for d in profiles], (CPU, OPENVINO), 128)
    first, second = plan.stages
    stages = (
        msgspec.structs.replace(first, start=0, stop=CUT),
        msgspec.structs.replace(second, start=CUT, stop=len(model.manifest.units)),
    )
    plan = msgspec.structs.replace(plan, stages=stages)
    return deploy(
        model.store, model.manifest, model.blob, plan, cluster.cluster, cluster.keys, fuse
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4", "mixed"])
def test_portable_shards_run_within_the_tolerance(precision: Precision, tmp_path: Path) -> None:
    """Also with 16-bit floats and blocks, whose rounding is compared with that of our CPU."""
    made = compiled("grouped", precision, "portable")
    _, blob = fuse(made.store, made.manifest, made.blob, 0, len(made.manifest.units))
    (tmp_path / "shard.json").write_bytes(msgspec.json.encode(blob))
    tokens = np.arange(3, 40)[None]
    np.save(tmp_path / "in.npy", tokens)
    files = [str(tmp_path / name) for name in ("shard.json", "in.npy", "out.npy")]
    done = subprocess.run(
        [str(PYTHON), "-P", "-c", RUN, str(made.store.root), *files, OPENVINO],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    with made.chain() as chain:
        expected = chain.step(0, tokens[0].tolist(), every_position=True)
    error = np.abs(np.load(files[2]) - expected).max() / expected.std()
    assert error < (HALF_TOLERANCE if precision == "fp16" else TOLERANCE)


def test_an_agent_of_another_build_is_profiled_like_any(
    model: CompiledModel, profiles: tuple[DeviceProfile, ...]
) -> None:
    plain, other = profiles
    workload = Workload(context=128, slots=1, prompt_tokens=16, decode_context=16)

    assert plain.runtime == ort.__version__ != other.runtime
    assert {(u.provider, u.target) for u in other.units} == {(OPENVINO, "portable"), (CPU, "ort")}
    assert OPENVINO in {c.provider for c in provider_costs([model.manifest], other, workload, 1)}


def test_a_mixed_chain_gives_the_same_text_and_says_that_it_is_mixed(
    model: CompiledModel, cluster: LocalCluster, deployment: Deployment
) -> None:
    with Client.connect(cluster.cluster_path, cluster.key_path) as client:
        result = client.generate(PROMPT, raw=True, max_tokens=12, ignore_eos=True).finish()
    with compiled("grouped").chain(context=CONTEXT) as chain:
        expected = chain.greedy(list(PROMPT.encode()), 12)

    assert deployment.is_mixed
    assert result.is_mixed
    assert list(result.token_ids) == expected

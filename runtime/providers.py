"""What ONNX Runtime is told about the provider of a shard.

Rule: a manifest came from elsewhere. It may set the options in `OPTIONS` and no other, and it names
folders, never paths: they lie in one that the device chooses, one for each graph.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from edgeshard.artifacts.engine import FOLDERS, OPTIONS
from edgeshard.errors import ArtifactError, DeviceError
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import CPU, CUDA, OPENVINO, TENSORRT


class ProviderError(DeviceError):
    """A provider does not start on this device, though its ONNX Runtime was built with it."""


ProviderList = list[str | tuple[str, dict[str, str]]]
# It would round activations to 8 bits in groups of its own, by what the processor has.
_OPENVINO_OPTIONS = {"load_config": json.dumps({"CPU": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}})}
_FOLDER = re.compile(r"[a-z]{1,32}")


def provider_list(provider: str, shard: ShardManifest, engines: Path) -> ProviderList:
    """The provider with its options, and those behind it for operators that it lacks.

    Args:
        provider: what was planned.
        shard: its manifest.
        engines: folder for engines and timings; made where the provider writes there.

    Raises:
        ArtifactError: the manifest sets an option that it may not.
    """
    check_options(shard.provider_options)
    if provider == OPENVINO:
        return [(OPENVINO, dict(_OPENVINO_OPTIONS)), CPU]
    if provider != TENSORRT:
        return [provider] if provider == CPU else [provider, CPU]
    options = dict(shard.provider_options)
    for name in FOLDERS & options.keys():
        # Timings serve all shards of a machine, an engine its own graph only.
        owner = shard.graph.digest.removeprefix("sha256:")[:16] if "engine" in name else "all"
        folder = engines / options[name] / owner
        folder.mkdir(parents=True, exist_ok=True)
        options[name] = str(folder)
    return [(TENSORRT, options), CUDA, CPU]


def check_options(options: dict[str, str]) -> None:
    """Refuse options beyond those that a manifest may set.

    Raises:
        ArtifactError: names the option.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise ArtifactError(f"the shard sets provider option {name!r}, which it may not")
        if name in FOLDERS and not _FOLDER.fullmatch(value):
            raise ArtifactError(f"provider option {name} is {value!r}, not the name of a folder")

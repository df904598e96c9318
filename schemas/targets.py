"""Which target a provider runs: the table by which planner, profiler and device agree.

Rule: the choice follows from the provider and what the model was compiled for, so nobody has to be
told it. A provider without an entry runs standard operators only.
"""

from __future__ import annotations

from edgeshard.errors import InputError
from edgeshard.schemas.common import FloatType, Target
from edgeshard.schemas.model import ModelManifest

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
# Providers whose tensors lie elsewhere than in the machine's memory.
ON_GPU = (CUDA, TENSORRT)

# Best first. The CPU provider has every operator, so it can check every target.
RUNS: dict[str, tuple[Target, ...]] = {
    CPU: ("ort", "portable", "tensorrt"),
    CUDA: ("ort", "portable"),
    TENSORRT: ("tensorrt",),
}
STANDARD: tuple[Target, ...] = ("portable",)
# ONNX Runtime's CPU provider casts float16 to float32 where it has no kernel, bfloat16 nowhere.
LACKS: dict[str, tuple[FloatType, ...]] = {CPU: ("bfloat16",)}


def copies_slots(provider: str, layout: str) -> bool:
    """Whether keys and values of one slot can be copied to another, by a cache's layout."""
    return layout == "append" or provider not in ON_GPU


def runs(provider: str) -> tuple[Target, ...]:
    """Targets that a provider runs, best first."""
    return RUNS.get(provider, STANDARD)


def target_for(model: ModelManifest, provider: str) -> Target:
    """The best of the model's targets for a provider.

    Raises:
        InputError: it runs none of them; names both sides and the option to compile with.
    """
    check_activations(model.activations, provider)
    for target in runs(provider):
        if target in model.targets:
            return target
    wanted = ",".join((*model.targets, runs(provider)[0]))
    raise InputError(
        f"{provider} runs {' or '.join(runs(provider))}, {model.name} has "
        f"{' and '.join(model.targets)}; compile with --target {wanted}"
    )


def view_for(model: ModelManifest, provider: str) -> ModelManifest:
    """The manifest of the target that a provider runs; see `target_for`."""
    return model.view(target_for(model, provider))


def check_target(target: Target, activations: FloatType, provider: str) -> None:
    """Refuse a shard that a provider is not meant for.

    Raises:
        InputError: names target or type, the provider, and what to compile with.
    """
    check_activations(activations, provider)
    if target not in runs(provider):
        raise InputError(
            f"{provider} runs {' or '.join(runs(provider))}, the shard is {target}; "
            f"compile with --target {runs(provider)[0]}"
        )


def check_activations(activations: FloatType, provider: str) -> None:
    """Refuse a type that a provider has no kernels for.

    Raises:
        InputError: names both, and what to compile with.
    """
    if activations in LACKS.get(provider, ()):
        raise InputError(
            f"{provider} has no {activations} kernels; run on {CUDA}, or compile with "
            "--precision fp32, int8 or int4"
        )

"""Which target a provider runs: the table by which planner, profiler and device agree.

Rule: the choice follows from the provider and what the model was compiled for, so nobody has to be
told it. A provider without an entry runs standard operators only.
"""

from __future__ import annotations

from edgeshard.errors import InputError
from edgeshard.schemas.common import CacheType, FloatType, Target
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
# Types that a provider has no kernels for. ONNX Runtime's CPU provider casts float16 to float32
# where it has none, bfloat16 nowhere. Its CUDA provider has no fused attention in float32 and would
# leave it to the CPU, with all keys and values copied there and back in every step.
LACKS: dict[str, dict[Target, tuple[FloatType, ...]]] = {
    CPU: dict.fromkeys(RUNS[CPU], ("bfloat16",)),
    CUDA: {"ort": ("float32",)},
}
REMEDIES = {
    CPU: f"run on {CUDA}, or compile with --precision fp32, int8 or int4",
    CUDA: "compile with --precision fp16, with --activations float16, or with --target portable",
}


def copies_slots(provider: str, layout: str) -> bool:
    """Whether keys and values of one slot can be copied to another, by a cache's layout."""
    return layout == "append" or provider not in ON_GPU


def lacks(provider: str, target: Target) -> tuple[FloatType, ...]:
    """Types of activations in which a provider does not run a target."""
    return LACKS.get(provider, {}).get(target, ())


def runs(provider: str) -> tuple[Target, ...]:
    """Targets that a provider runs, best first."""
    return RUNS.get(provider, STANDARD)


def target_for(model: ModelManifest, provider: str) -> Target:
    """The best of the model's targets for a provider.

    Raises:
        InputError: it runs none of them; names both sides and the option to compile with.
    """
    known = [target for target in runs(provider) if target in model.targets]
    for target in known:
        if model.activations not in lacks(provider, target):
            check_cache(model.view(target).kv.dtype, provider)
            return target
    if known:
        check_activations(model.activations, provider, known[0])
    wanted = ",".join((*model.targets, runs(provider)[0]))
    raise InputError(
        f"{provider} runs {' or '.join(runs(provider))}, {model.name} has "
        f"{' and '.join(model.targets)}; compile with --target {wanted}"
    )


def view_for(model: ModelManifest, provider: str) -> ModelManifest:
    """The manifest of the target that a provider runs; see `target_for`."""
    return model.view(target_for(model, provider))


def check_target(
    target: Target, activations: FloatType, provider: str, cache: CacheType = "float32"
) -> None:
    """Refuse a shard that a provider is not meant for.

    Raises:
        InputError: names target or type, the provider, and what to compile with.
    """
    check_cache(cache, provider)
    if target not in runs(provider):
        raise InputError(
            f"{provider} runs {' or '.join(runs(provider))}, the shard is {target}; "
            f"compile with --target {runs(provider)[0]}"
        )
    check_activations(activations, provider, target)


def check_cache(dtype: CacheType, provider: str) -> None:
    """Refuse keys and values that a provider does not keep.

    Raises:
        InputError: names type and provider, and what to compile with.
    """
    if dtype == "int8" and provider != CPU:
        raise InputError(
            f"{provider} keeps no keys and values in {dtype}; run on {CPU}, or compile without --kv"
        )


def check_activations(activations: FloatType, provider: str, target: Target) -> None:
    """Refuse a type that a provider has no kernels for.

    Raises:
        InputError: names all three, and what to compile with.
    """
    if activations in lacks(provider, target):
        raise InputError(
            f"{provider} has no {activations} kernels for {target}; {REMEDIES[provider]}"
        )

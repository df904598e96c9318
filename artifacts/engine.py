"""What TensorRT is told about a shard, so that an engine is built once and never again.

Every input with a free axis gets its smallest, usual and largest shape; engines and timings are
kept in folders of the device's choice. Source of the names: ONNX Runtime's documentation, "TensorRT
Execution Provider", Configurations.
"""

from __future__ import annotations

from edgeshard.schemas.shard import ShardManifest

ENGINES = "engines"
TIMINGS = "timings"
# What a manifest may set, and which of it names a folder.
FOLDERS = frozenset({"trt_engine_cache_path", "trt_timing_cache_path"})
OPTIONS = FOLDERS | {
    "trt_engine_cache_enable",
    "trt_timing_cache_enable",
    "trt_fp16_enable",
    "trt_int8_enable",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
}


def engine_options(shard: ShardManifest) -> dict[str, str]:
    """Options of the TensorRT provider for a shard of the `tensorrt` target; empty for others."""
    if shard.target != "tensorrt":
        return {}
    assert shard.kv.max_step is not None
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": ENGINES,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": TIMINGS,
        "trt_fp16_enable": str(shard.activations == "float16"),
        "trt_int8_enable": str(shard.precision == "int8"),
        "trt_profile_min_shapes": shapes(shard, 1),
        "trt_profile_opt_shapes": shapes(shard, 1),  # a decode step
        "trt_profile_max_shapes": shapes(shard, shard.kv.max_step),
    }


def shapes(shard: ShardManifest, step: int) -> str:
    """`name:1x7,…` of the inputs with a free axis, in a step of `step` positions."""
    found: dict[str, tuple[int, ...]] = {"token_ids": (1, step)}
    if not shard.has_embedding:
        found = {f"hidden.{shard.start}": (1, step, shard.hidden_size)}
    if shard.blocks:
        found["position_ids"] = (1, step)
    if shard.has_head:
        found["logit_positions"] = (step,)
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in found.items())

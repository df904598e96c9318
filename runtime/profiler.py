"""Measures what units cost on this device; a process of its own, started by the agent.

    agent ── config ──► profiler ── progress … result: a DeviceProfile ──► agent

A stage's step costs a fixed part and its units. A window of one block and a window of several,
with weights of their own, tell the two apart. A device too small for several measures units one at
a time and takes the fixed part as zero. In a chain a stage sleeps between its steps, so a pause is
made before each timed decode step: waking up is part of the cost.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import EdgeShardError, InputError
from edgeshard.runtime.child import Line, Parent, exit_now
from edgeshard.runtime.machine import instruction_set, resident_bytes, settled_bytes
from edgeshard.runtime.representative import bytes_of, make_representative
from edgeshard.runtime.session import ShardSession
from edgeshard.schemas import files
from edgeshard.schemas.cluster import Device
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import ModelManifest
from edgeshard.schemas.profile import (
    DecodePoint,
    DeviceProfile,
    PrefillPoint,
    Timing,
    UnitProfile,
)
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import view_for
from edgeshard.system import pin_thread

IGNORED_PROVIDERS = {"AzureExecutionProvider"}
MAX_WINDOW = 8
PAUSE_SECONDS = 0.005
DECODE_SAMPLES = 30
PREFILL_SAMPLES = 5
LIMIT_SECONDS = 2.0  # of one measured point on a slow device


class ProfileSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure.

    Attributes:
        model: manifest of the model; the graphs of `representatives` are in the store.
        representatives: index of one unit for each structure.
        sampled: names of units whose weights are in the store, to check the representatives.
        contexts: positions held before a decode step.
        batches: sequences of a decode step, measured at the first context.
        prompts: lengths of a prefill.
    """

    model: Blob
    representatives: tuple[int, ...]
    sampled: tuple[str, ...] = ()
    contexts: tuple[int, ...] = (64, 512, 1024)
    batches: tuple[int, ...] = (1, 4)
    prompts: tuple[int, ...] = (16, 128, 512)


class ProfilerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent passes on: where its store is, what it may use, and the operator's spec."""

    store: str
    device: Device
    threads: int
    memory_bytes: int
    spec: ProfileSpec


@dataclass(frozen=True)
class _Window:
    """A measured session: seconds by point, and memory."""

    decode: dict[tuple[int, int], list[float]]
    prefill: dict[int, list[float]]
    resident_bytes: int
    workspace_bytes: int


class Profiler:
    """Measures the units of one model on one device."""

    def __init__(self, config: ProfilerConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._spec = config.spec
        self._say = say
        self._store = Store(Path(config.store))
        path = self._store.path(self._spec.model)
        self._whole = files.decode(self._store.read(self._spec.model), ModelManifest, str(path))
        self._model = self._whole
        self._baseline = settled_bytes()
        self._workspace = 0
        self._overhead = 0.0

    def measure(self) -> DeviceProfile:
        """Measure every representative on every provider.

        Raises:
            EdgeShardError: a graph cannot be run here.
        """
        device, config = self._config.device, self._config
        available = [p for p in ort.get_available_providers() if p not in IGNORED_PROVIDERS]
        here = [p for p in device.providers or available if p in available]
        providers = [provider for provider in here if self._can_run(provider)]
        if here and not providers:
            view_for(self._whole, here[0])
        units = [profile for provider in providers for profile in self._measure_provider(provider)]
        return DeviceProfile(
            name=device.name,
            runtime=ort.__version__,
            isa=instruction_set(),
            threads=config.threads,
            providers=tuple(providers),
            memory_bytes=config.memory_bytes,
            baseline_bytes=self._baseline,
            workspace_bytes=self._workspace,
            step_overhead_seconds=self._overhead,
            units=tuple(units),
        )

    def _can_run(self, provider: str) -> bool:
        """Whether the model has a target that the provider runs."""
        try:
            view_for(self._whole, provider)
        except InputError as error:
            self._say(f"nothing on {provider}: {error}")
            return False
        return True

    def _measure_provider(self, provider: str) -> Iterator[UnitProfile]:
        self._model = view_for(self._whole, provider)
        context = max(*self._spec.contexts, *self._spec.prompts) + DECODE_SAMPLES + 8
        self._context = self._model.kv.context or min(context, self._model.max_context)
        self._longest = self._model.kv.max_step or self._context
        # Blocks first: they tell the fixed part of a step, which the ends are measured with.
        order = sorted(
            self._spec.representatives, key=lambda index: self._model.units[index].kind != "block"
        )
        for index in order:
            yield self._measure_unit(index, provider)

    def _measure_unit(self, index: int, provider: str) -> UnitProfile:
        unit = self._model.units[index]
        self._say(f"{unit.name} on {provider}")
        one = self._window(index, 1, provider)
        count = self._window_size(index)
        decode, prefill, resident = one.decode, one.prefill, one.resident_bytes
        if unit.kind == "block" and count > 1:
            many = self._window(index, count, provider)
            slope = {key: _slope(one.decode[key], many.decode[key], count) for key in decode}
            self._overhead = max(
                0.0, float(np.median(one.decode[self._first])) - slope[self._first]
            )
            decode = {key: [value / count for value in many.decode[key]] for key in decode}
            decode = {key: _shifted(decode[key], slope[key]) for key in decode}
            prefill = {key: [value / count for value in many.prefill[key]] for key in prefill}
            resident = many.resident_bytes // count
        elif unit.kind != "block":
            decode = {
                key: _shifted(times, max(0.0, float(np.median(times)) - self._overhead))
                for key, times in decode.items()
            }
        sampled, deviation = self._check(unit.structure, index, provider)
        return UnitProfile(
            structure=unit.structure,
            kind=unit.kind,
            provider=provider,
            target=self._model.target,
            precision=self._model.precision,
            decode=tuple(
                DecodePoint(context=context, batch=batch, time=timing(times))
                for (context, batch), times in decode.items()
            ),
            prefill=tuple(
                PrefillPoint(num_tokens=length, past=0, time=timing(times))
                for length, times in prefill.items()
            ),
            resident_bytes=max(0, resident),
            sampled=sampled,
            sample_deviation=deviation,
        )

    @property
    def _first(self) -> tuple[int, int]:
        return self._contexts[0], 1

    @property
    def _contexts(self) -> list[int]:
        fitting = [c for c in self._spec.contexts if c + DECODE_SAMPLES < self._context]
        return fitting or [min(8, self._context // 2)]

    def _window_size(self, index: int) -> int:
        """Blocks that the device's memory surely holds: ONNX Runtime may keep a packed copy."""
        if self._model.units[index].kind != "block":
            return 1
        weights = bytes_of(self._model.units[index].weights)
        kv = self._model.kv.bytes_per_token() * self._context * max(self._spec.batches)
        room = self._config.memory_bytes - self._baseline
        return max(1, min(MAX_WINDOW, room // (3 * (weights + kv))))

    def _window(self, index: int, count: int, provider: str) -> _Window:
        with tempfile.TemporaryDirectory(dir=self._store.root / "incoming") as folder:
            scratch = Store(Path(folder))
            shard = make_representative(
                self._store, scratch, self._model, self._spec.model, index, count
            )
            return self._run(scratch, shard, provider)

    def _run(self, store: Store, shard: ShardManifest, provider: str) -> _Window:
        before, slots = settled_bytes(), max(self._spec.batches)
        with _opened(store, shard, provider, self._config, self._context, slots) as session:
            step = _Stepper(session)
            step.prefill(1)
            loaded = settled_bytes()
            prefill = {
                length: _repeat(partial(step.prefill, length), PREFILL_SAMPLES, 0.0)
                for length in self._spec.prompts
                if length <= self._longest
            }
            points = [(context, 1) for context in self._contexts]
            points += [(self._contexts[0], b) for b in self._spec.batches if b > 1]
            decode = {
                point: _repeat(
                    partial(step.decode, *point),
                    DECODE_SAMPLES,
                    PAUSE_SECONDS,
                    partial(step.hold, *point),
                )
                for point in points
            }
            touched = shard.kv_bytes(self._context, slots)
            growth = resident_bytes(os.getpid()) - loaded - touched
        self._workspace = max(self._workspace, growth)
        return _Window(decode, prefill, loaded - before, max(0, growth))

    def _check(
        self, structure: str, index: int, provider: str
    ) -> tuple[tuple[str, ...], float | None]:
        """Compare real units of the structure with the representative, step by step in turns."""
        deviations = {
            unit.name: self._deviation(index, number, provider)
            for number, unit in enumerate(self._model.units)
            if unit.structure == structure and unit.name in self._spec.sampled
        }
        return tuple(deviations), max(deviations.values(), default=None)

    def _deviation(self, representative: int, real: int, provider: str) -> float:
        config, context = self._config, self._context
        with tempfile.TemporaryDirectory(dir=self._store.root / "incoming") as folder:
            scratch = Store(Path(folder))
            made = make_representative(
                self._store, scratch, self._model, self._spec.model, representative, 1
            )
            found, _ = fuse(self._store, self._model, self._spec.model, real, real + 1)
            with (
                _opened(scratch, made, provider, config, context, 1) as first,
                _opened(self._store, found, provider, config, context, 1) as second,
            ):
                steppers = _Stepper(first), _Stepper(second)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(DECODE_SAMPLES):
                    for stepper, samples in zip(steppers, times, strict=True):
                        hold = partial(stepper.hold, *self._first)
                        decode = partial(stepper.decode, *self._first)
                        samples += _repeat(decode, 1, 0.0, hold)
        expected, measured = (float(np.median(samples)) for samples in times)
        return abs(measured - expected) / expected


class _Stepper:
    """Takes steps of a session with made-up values."""

    def __init__(self, session: ShardSession) -> None:
        self._session = session
        self._generator = np.random.default_rng(0)

    def prefill(self, length: int) -> None:
        self._step(0, 1, length)

    def decode(self, context: int, batch: int) -> None:
        self._step(context, batch, 1)

    def hold(self, context: int, batch: int) -> None:
        """Make the cache hold `context` positions; a static one may hold anything."""
        shard = self._session.shard
        if shard.kv.layout == "append" and shard.blocks and context:
            self._step(0, batch, context)

    def _step(self, context: int, batch: int, length: int) -> None:
        shard = self._session.shard
        values: NDArray[Any]
        if shard.has_embedding:
            values = self._generator.integers(0, shard.vocab_size, (batch, length))
        else:
            shape = (batch, length, shard.hidden_size)
            values = self._generator.standard_normal(shape, np.float32)
        self._session.run(0, [context] * batch, values)


@contextmanager
def _opened(
    store: Store,
    shard: ShardManifest,
    provider: str,
    config: ProfilerConfig,
    context: int,
    slots: int,
) -> Iterator[ShardSession]:
    session = ShardSession.open(
        store,
        shard,
        provider=provider,
        threads=config.threads,
        cores=config.device.cores,
        context=context,
        slots=slots,
    )
    try:
        yield session
    finally:
        session.close()


def _repeat(
    step: Callable[[], None],
    samples: int,
    pause_seconds: float,
    prepare: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each step after one to warm up; fewer where the device is slow."""
    prepare()
    step()
    times: list[float] = []
    ends = time.monotonic() + LIMIT_SECONDS
    while len(times) < samples and (len(times) < min(3, samples) or time.monotonic() < ends):
        prepare()
        time.sleep(pause_seconds)
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times


def _slope(one: Sequence[float], many: Sequence[float], count: int) -> float:
    """Seconds of one more unit."""
    return max(0.0, (float(np.median(many)) - float(np.median(one))) / (count - 1))


def _shifted(times: Sequence[float], median: float) -> list[float]:
    """The same spread around another median."""
    shift = median - float(np.median(times))
    return [max(0.0, value + shift) for value in times]


def timing(times: Sequence[float]) -> Timing:
    """Median and spread of measured seconds."""
    low, median, high = (float(np.percentile(times, q)) for q in (10, 50, 90))
    return Timing(median_seconds=median, low_seconds=low, high_seconds=high, num_samples=len(times))


def main() -> int:
    """Run one profile; see `edgeshard.runtime.child` for how it speaks to the agent."""
    parent = Parent()
    try:
        config = parent.config(ProfilerConfig)
        if config.device.cores:
            pin_thread(config.device.cores[0])
        parent.follow(lambda line: None, exit_now)
        profiler = Profiler(config, lambda text: parent.tell(Line(progress=text)))
        parent.tell(Line(result=msgspec.to_builtins(profiler.measure())))
    except EdgeShardError as error:
        parent.fail(error)
        return 1
    except (msgspec.ValidationError, ValueError) as error:
        parent.fail(InputError(f"the profile cannot start: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

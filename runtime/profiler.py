"""Measures what units cost on this device; a process of its own, started by the agent.

    agent ── config ──► profiler ── progress … result: a DeviceProfile ──► agent

A stage's step costs a fixed part and its units. A window of one block and a window of several,
with weights of their own, tell the two apart, once; of other blocks a window of several is enough.
A device too small for several measures units one at a time and takes the fixed part as zero. How
often a step is timed says `points.py`. In a chain a stage sleeps between its steps, and other units
are read before its own come again: so before each timed decode step as much memory is read as the
rest of the model takes, and a pause is made. Waking up and cold caches are part of the cost.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from edgeshard.artifacts.fuse import fuse
from edgeshard.artifacts.store import Store
from edgeshard.errors import EdgeShardError, InputError
from edgeshard.runtime.child import Line, Parent, exit_now
from edgeshard.runtime.machine import instruction_set, resident_bytes, settled_bytes
from edgeshard.runtime.points import Others, Stepper, repeat, seconds, shifted, timing
from edgeshard.runtime.providers import ProviderError
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
    UnitProfile,
)
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import view_for
from edgeshard.system import pin_thread

IGNORED_PROVIDERS = {"AzureExecutionProvider"}
MAX_WINDOW = 8
PAUSE_SECONDS = 0.005
DECODE_SAMPLES = 20
PREFILL_SAMPLES = 3
MOST_OTHER_BYTES = 256 * 2**20  # more than caches keep
Point = tuple[int, int]  # context and batch of a decode step


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
    """A measured session: seconds by point, memory, and `UnitProfile.rows_alike`."""

    decode: dict[Point, list[float]]
    prefill: dict[int, list[float]]
    resident_bytes: int
    workspace_bytes: int
    rows_alike: bool | None


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
        self._overhead: float | None = None

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
        units = self._measured(providers)
        return DeviceProfile(
            name=device.name,
            runtime=ort.__version__,
            isa=instruction_set(),
            threads=config.threads,
            providers=tuple(p for p in providers if any(unit.provider == p for unit in units)),
            memory_bytes=config.memory_bytes,
            baseline_bytes=self._baseline,
            workspace_bytes=self._workspace,
            step_overhead_seconds=self._overhead or 0.0,
            units=tuple(units),
        )

    def _measured(self, providers: Sequence[str]) -> list[UnitProfile]:
        """Units on every provider that starts."""
        units: list[UnitProfile] = []
        problem: ProviderError | None = None
        for provider in providers:
            try:
                units += list(self._measure_provider(provider))  # all of its units or none
            except ProviderError as error:
                problem = error
                self._say(f"nothing on {provider}: {error}")
        if problem is not None and not units:
            raise problem
        return units

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
        self._overhead = None
        for index in sorted(self._spec.representatives, key=self._turn):
            yield self._measure_unit(index, provider)

    def _turn(self, index: int) -> tuple[bool, int]:
        """The smallest block first: it shows the fixed part of a step, which others need, best."""
        unit = self._model.units[index]
        return unit.kind != "block", bytes_of(unit.weights)

    def _measure_unit(self, index: int, provider: str) -> UnitProfile:
        unit = self._model.units[index]
        self._say(f"{unit.name} on {provider}")
        count = self._window_size(index)
        points = [self._first] if self._overhead is None else []
        # One block tells the workspace, also where the fixed part is known: of the caches of
        # several, what is in use would have to be guessed.
        alone = self._window(index, 1, provider, points) if count > 1 else None
        window = self._window(index, count, provider)
        if alone and points:
            self._overhead = self._fixed_part(alone, window, count)
        fixed = self._overhead or 0.0
        decode = {
            point: shifted(
                [value / count for value in times],
                max(0.0, (float(np.median(times)) - fixed) / count),
            )
            for point, times in window.decode.items()
        }
        prefill = {
            length: [value / count for value in times] for length, times in window.prefill.items()
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
            resident_bytes=max(0, window.resident_bytes // count),
            sampled=sampled,
            sample_deviation=deviation,
            rows_alike=window.rows_alike,
        )

    def _fixed_part(self, alone: _Window, window: _Window, count: int) -> float:
        """Seconds of a step that are of no unit: what one block takes above one more block."""
        one, many = (float(np.median(found.decode[self._first])) for found in (alone, window))
        return max(0.0, one - max(0.0, many - one) / (count - 1))

    @property
    def _first(self) -> Point:
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

    def _window(
        self, index: int, count: int, provider: str, points: Sequence[Point] | None = None
    ) -> _Window:
        """Open so many copies and time them at these decode points; None: at all."""
        with tempfile.TemporaryDirectory(dir=self._store.root / "incoming") as folder:
            scratch = Store(Path(folder))
            shard = make_representative(
                self._store, scratch, self._model, self._spec.model, index, count
            )
            return self._run(
                scratch, shard, provider, self._points(shard) if points is None else points
            )

    def _run(
        self, store: Store, shard: ShardManifest, provider: str, points: Sequence[Point]
    ) -> _Window:
        before, slots = settled_bytes(), max(self._spec.batches)
        with _opened(store, shard, provider, self._config, self._context, slots) as session:
            step = Stepper(session)
            step.prefill(1)
            loaded = settled_bytes()
            # Long steps repeat well, and the median of three shrugs off a first one that is slow.
            prefill = {
                length: [seconds(partial(step.prefill, length)) for _ in range(PREFILL_SAMPLES)]
                for length in self._spec.prompts
                if length <= self._longest
            }
            decode = self._decode(step, points, self._other_bytes(shard))
            if not shard.blocks:  # without a cache a step takes the same at every context
                decode |= {(context, 1): decode[self._first] for context in self._contexts}
            touched = shard.kv_bytes(self._context, slots)
            growth = resident_bytes(os.getpid()) - loaded - touched
            alike = self._rows_alike(step, {batch for _, batch in points if batch > 1})
        self._workspace = max(self._workspace, growth)
        return _Window(decode, prefill, loaded - before, max(0, growth), alike)

    def _rows_alike(self, step: Stepper, batches: set[int]) -> bool | None:
        """See `UnitProfile.rows_alike`; of two and three rows too, where several are timed."""
        if not batches:
            return None
        context, most = self._contexts[0], max(batches)
        # Kernels take rows in pairs or fours, what is left over one by one.
        return all(step.rows_alike(context, min(rows, most)) for rows in {2, 3, *batches})

    def _decode(
        self, step: Stepper, points: Sequence[Point], other_bytes: int
    ) -> dict[Point, list[float]]:
        with Others(other_bytes) as others:

            def prepare(point: Point) -> None:
                step.hold(*point)
                others.read()

            return {
                point: repeat(
                    partial(step.decode, *point),
                    DECODE_SAMPLES,
                    PAUSE_SECONDS,
                    partial(prepare, point),
                )
                for point in points
            }

    def _other_bytes(self, shard: ShardManifest) -> int:
        """Bytes of the model's other units, as far as caches and half of what is free go."""
        whole = bytes_of(tuple({blob for unit in self._model.units for blob in unit.weights}))
        free = self._config.memory_bytes - resident_bytes(os.getpid())
        return max(0, min(whole - bytes_of(shard.weights), MOST_OTHER_BYTES, free // 2))

    def _points(self, shard: ShardManifest) -> list[Point]:
        """Contexts and batches of the decode steps to time."""
        contexts = self._contexts if shard.blocks else self._contexts[:1]
        alone = [(context, 1) for context in contexts]
        return alone + [(contexts[0], batch) for batch in self._spec.batches if batch > 1]

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
                steppers = Stepper(first), Stepper(second)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(DECODE_SAMPLES):
                    for stepper, samples in zip(steppers, times, strict=True):
                        for _ in range(2):  # the first warms up
                            stepper.hold(*self._first)
                            last = seconds(partial(stepper.decode, *self._first))
                        samples.append(last)
        expected, measured = (float(np.median(samples)) for samples in times)
        return abs(measured - expected) / expected


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

"""A shard in ONNX Runtime, with the keys and values of its sequences.

    values [B, S] token ids or [B, S, hidden] ──► run ──► [B, S, hidden] or logits [B, vocab]

Axes: B neighbouring slots from `first_slot`, S new positions of each, C the context of a slot. With
the `static` layout the cache of all slots is one array `[slots, kv_heads, C, head_dim]` for each
block and part; a slice of it is bound by address as input and output, so it is written in place.
With `append` every slot keeps the cache that its last step gave back, and with `copy` it changes
places with a spare one, which the step has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgeshard.artifacts.graph_check import check_graph, read_graph
from edgeshard.artifacts.store import Store
from edgeshard.errors import DeviceError, InputError
from edgeshard.runtime.kv_cache import KINDS, CacheArray, device_of, make_arrays
from edgeshard.runtime.loading import (
    ORT_ERRORS,
    Loaded,
    check_runtime,
    choose_attention,
    load,
    session_options,
)
from edgeshard.runtime.prompt_attention import IS_PROMPT
from edgeshard.runtime.providers import provider_list
from edgeshard.schemas.shard import ShardManifest
from edgeshard.schemas.targets import CPU, check_target

Floats = NDArray[np.float32]
# A step of so many positions gives its workspace back: that of a prompt chunk is many times that of
# a decode step, and shapes that differ would each leave a hole of their own in what is kept.
SHRINK_TOKENS = 128
SHRINK_OPTION = "memory.enable_memory_arena_shrinkage"
MAX_BOUND = 16  # bindings of decode steps that are kept, each with its arrays


class ShardSession:
    """One shard, loaded. Not for several threads at once."""

    def __init__(
        self,
        loaded: Loaded,
        shard: ShardManifest,
        context: int,
        slots: int,
        provider: str = CPU,
        *,
        keeps_workspace: bool = False,
    ) -> None:
        self.shard = shard
        self.context = context
        self.slots = slots
        self._session = loaded.session
        self._scales = loaded.scales
        self._takes_is_prompt = IS_PROMPT in {one.name for one in loaded.session.get_inputs()}
        self._input = "token_ids" if shard.has_embedding else f"hidden.{shard.start}"
        self._output = "logits" if shard.has_head else f"hidden.{shard.stop}"
        self._options = self._prompt_options = ort.RunOptions()
        if provider == CPU and not keeps_workspace:
            self._prompt_options = ort.RunOptions()
            self._prompt_options.add_run_config_entry(SHRINK_OPTION, "cpu:0")
        self._bound: dict[tuple[int, int, int], _Bound] = {}
        self._names = [
            (f"block.{index}.past_{part}", f"block.{index}.present_{part}")
            for index in shard.blocks
            for part in ("key", "value")
        ]
        self._device = device_of(provider)
        self._cache: list[CacheArray] = []
        self._appended: dict[int, list[ort.OrtValue]] = {}
        # With `copy`: which row each slot's cache is in. The last row is the spare one.
        self._rows = list(range(slots + 1))
        if shard.kv.layout != "append":
            rows = slots + 1 if shard.kv.layout == "copy" else slots
            shape = (rows, shard.kv.num_kv_heads, context, shard.kv.head_dim)
            self._cache = make_arrays(len(self._names), shape, shard.kv.dtype, provider)

    @classmethod
    def open(
        cls,
        store: Store,
        shard: ShardManifest,
        *,
        provider: str = CPU,
        threads: int = 0,
        cores: tuple[int, ...] = (),
        context: int = 2048,
        slots: int = 1,
        keeps_workspace: bool = False,
    ) -> ShardSession:
        """Check every byte of a shard, then load it.

        Args:
            store: holds the shard's blobs.
            shard: what to load.
            provider: ONNX Runtime execution provider.
            threads: of the shard's operators; 0: all physical cores.
            cores: logical cores for as many threads, the caller's first; empty: wherever.
            context: positions of a slot.
            slots: sequences that are held at once.
            keeps_workspace: do not give back what a prompt chunk took; for measuring it.

        Raises:
            ArtifactError: a blob is missing or changed, or the graph is not what a shard may be.
            InputError: the context is longer than the model's, or not the one that the shard was
                made for; or the provider does not run its target.
            DeviceError: the provider is not here, or ONNX Runtime is too old or refuses the graph.
        """
        if context > shard.max_context:
            raise InputError(
                f"context {context} is more than the model's {shard.max_context}; ask for less"
            )
        if shard.kv.context not in (None, context):
            raise InputError(
                f"context {context} is not the {shard.kv.context} that the shard was compiled for; "
                f"plan with --context {shard.kv.context}, or compile with --context {context}"
            )
        available = ort.get_available_providers()
        if provider not in available:
            raise DeviceError(f"no {provider} on this device; it has {', '.join(available)}")
        check_target(shard.target, shard.activations, provider, shard.kv.dtype)
        check_runtime(shard.min_runtime, ort.__version__)
        store.verify([shard.graph, *shard.weights])
        path = store.path(shard.graph)
        graph = read_graph(path)
        check_graph(graph, shard.weights)
        choose_attention(graph, context)
        providers = provider_list(provider, shard, store.root / "engines")
        loaded = load(store, path, graph, providers, session_options(threads, cores))
        return cls(loaded, shard, context, slots, provider, keeps_workspace=keeps_workspace)

    def run(
        self,
        first_slot: int,
        positions: Sequence[int],
        values: NDArray[Any],
        *,
        every_position: bool = False,
    ) -> Floats:
        """Compute new positions of neighbouring slots.

        Args:
            first_slot: slot of the first row.
            positions: for each of B rows, how many positions its slot holds already.
            values: token ids `[B, S]` int64, or hidden states `[B, S, hidden]` float32.
            every_position: with the head, give logits of all S positions.

        Returns:
            Hidden states `[B, S, hidden]`, or logits `[B, vocab]` of each row's last position (with
            `every_position`, `[B, S, vocab]`). The array is the session's own and valid until its
            next step of this shape.

        Raises:
            InputError: rows beyond the slots, or positions beyond the context.
            DeviceError: ONNX Runtime failed.
        """
        batch, length = values.shape[:2]
        if first_slot < 0 or first_slot + batch > self.slots:
            raise InputError(f"slots [{first_slot}, {first_slot + batch}) of {self.slots}")
        end = max(positions) + length
        if min(positions) < 0 or end > self.context:
            raise InputError(f"{end} positions exceed the context {self.context}")
        if length > (self.shard.kv.max_step or length):
            raise InputError(f"{length} positions in a step, at most {self.shard.kv.max_step}")
        try:
            if self.shard.kv.layout == "static":
                return self._run_static(first_slot, positions, values, every_position)
            run_row = self._run_append if self.shard.kv.layout == "append" else self._run_copy
            rows = [
                run_row(first_slot + i, positions[i], values[i : i + 1], every_position)
                for i in range(batch)
            ]
            return rows[0] if batch == 1 else np.concatenate(rows)
        except ORT_ERRORS as error:
            raise DeviceError(f"ONNX Runtime failed in a step: {str(error)[:300]}") from error

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what slot `source` holds of its first positions to slot `target`.

        Raises:
            InputError: slot `source` does not hold as many.
            DeviceError: the cache lies where it cannot be copied.
        """
        if self.shard.kv.layout == "append":
            held = self._appended.get(source, [])
            if self._names and (not held or held[0].shape()[2] < length):
                raise InputError(f"slot {source} does not hold {length} positions")
            self._appended[target] = [self._cut(value, length) for value in held]
            return
        for cache in self._cache:
            cache.copy_start(self._rows[source], self._rows[target], length)

    def held(self, slot: int, length: int) -> list[NDArray[Any]]:
        """Keys and values of a slot's first positions, block by block: `[kv_heads, length, D]`.

        Raises:
            DeviceError: the cache is not in place, or lies where it cannot be read.
        """
        arrays = [cache.array for cache in self._cache]
        found = [array[self._rows[slot], :, :length] for array in arrays if array is not None]
        if len(found) != len(self._names):
            raise DeviceError(f"keys and values on {self._device} cannot be read")
        return found

    def close(self) -> None:
        """Let go of the session and the cache."""
        self._bound.clear()
        self._cache.clear()
        self._appended.clear()
        del self._session
        self._scales = None

    # Keys and values in place

    def _run_static(
        self,
        first_slot: int,
        positions: Sequence[int],
        values: NDArray[Any],
        every_position: bool,
    ) -> Floats:
        batch, length = values.shape[:2]
        key = (first_slot, batch, length)
        bound = None if every_position else self._bound.get(key)
        if bound is None:
            bound = self._bind(first_slot, batch, length, every_position)
            if length == 1 and not every_position:  # decode steps come again, prefills rarely
                while len(self._bound) >= MAX_BOUND:
                    del self._bound[next(iter(self._bound))]
                self._bound[key] = bound
        bound.values[...] = values
        bound.seqlens[...] = [position + length - 1 for position in positions]
        bound.total[0] = max(positions) + length
        if self._device != "cpu":  # there an input is copied when it is bound
            for name, array in bound.inputs.items():
                _bind_input(bound.binding, name, array)
        is_long = batch * length >= SHRINK_TOKENS
        options = self._prompt_options if is_long else self._options
        self._session.run_with_iobinding(bound.binding, options)
        return bound.result

    def _bind(self, first_slot: int, batch: int, length: int, every_position: bool) -> _Bound:
        shard = self.shard
        binding = self._session.io_binding()
        shape = (batch, length) if shard.has_embedding else (batch, length, shard.hidden_size)
        values = np.zeros(shape, np.int64 if shard.has_embedding else np.float32)
        inputs: dict[str, NDArray[Any]] = {self._input: values}
        seqlens, total = np.zeros(batch, np.int32), np.zeros(1, np.int32)
        if shard.blocks:
            inputs |= {"seqlens_k": seqlens, "total_sequence_length": total}
        if self._takes_is_prompt:
            inputs[IS_PROMPT] = np.array(length > 1)
        output: Floats = np.empty((batch, length, shard.hidden_size), np.float32)
        if shard.has_head:
            wanted = inputs["logit_positions"] = _logit_positions(length, every_position)
            output = np.empty((batch, wanted.size, shard.vocab_size), np.float32)
        for name, array in inputs.items():
            _bind_input(binding, name, array)
        for (past, present), cache in zip(self._names, self._cache, strict=True):
            cache.bind_input(binding, past, first_slot, batch)
            cache.bind_output(binding, present, first_slot, batch)
        _bind_output(binding, self._output, output)
        result = output if every_position or not shard.has_head else output[:, 0]
        return _Bound(binding, inputs, values, seqlens, total, result)

    # Keys and values appended

    def _run_append(
        self, slot: int, position: int, values: NDArray[Any], every_position: bool
    ) -> Floats:
        shard = self.shard
        if position == 0 or not self._names:
            shape = (1, shard.kv.num_kv_heads, 0, shard.kv.head_dim)
            empty = np.zeros(shape, KINDS[shard.kv.dtype])
            self._appended[slot] = [ort.OrtValue.ortvalue_from_numpy(empty) for _ in self._names]
        cache = self._appended.get(slot, [])
        held = cache[0].shape()[2] if cache else position
        if held < position or len(cache) != len(self._names):
            raise InputError(f"slot {slot} holds {held} positions, the step starts at {position}")
        if held > position:  # what lies behind is written anew, as in place
            cache = [self._cut(value, position) for value in cache]
        binding = self._bind_row(position, values, every_position)
        for (past, _), value in zip(self._names, cache, strict=True):
            binding.bind_ortvalue_input(past, value)
        binding.bind_output(self._output, "cpu")
        for _, present in self._names:
            binding.bind_output(present, self._device)
        self._session.run_with_iobinding(binding, self._options)
        output, *cache = binding.get_outputs()
        self._appended[slot] = cache
        result: Floats = output.numpy()
        return result if every_position or not shard.has_head else result[:, 0]

    def _cut(self, value: ort.OrtValue, length: int) -> ort.OrtValue:
        """The first positions of a cache `[1, kv_heads, T, head_dim]`."""
        part = np.ascontiguousarray(value.numpy()[:, :, :length])
        return ort.OrtValue.ortvalue_from_numpy(part, self._device, 0)

    def _bind_row(self, position: int, values: NDArray[Any], every_position: bool) -> ort.IOBinding:
        """Bind what a step of one slot takes beside its cache."""
        shard, length = self.shard, values.shape[1]
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, np.ascontiguousarray(values))
        if shard.blocks:
            places = np.arange(position, position + length, dtype=np.int64)[None]
            binding.bind_cpu_input("position_ids", places)
        if shard.has_head:
            wanted = _logit_positions(length, every_position)
            binding.bind_cpu_input("logit_positions", wanted)
        return binding

    # Keys and values copied

    def _run_copy(
        self, slot: int, position: int, values: NDArray[Any], every_position: bool
    ) -> Floats:
        binding = self._bind_row(position, values, every_position)
        for (past, present), cache in zip(self._names, self._cache, strict=True):
            cache.bind_input(binding, past, self._rows[slot], 1)
            cache.bind_output(binding, present, self._rows[-1], 1)
        binding.bind_output(self._output, "cpu")
        self._session.run_with_iobinding(binding, self._options)
        self._rows[slot], self._rows[-1] = self._rows[-1], self._rows[slot]
        names = [output.name for output in self._session.get_outputs()]
        result: Floats = binding.get_outputs()[names.index(self._output)].numpy()
        return result if every_position or not self.shard.has_head else result[:, 0]


class _Bound:
    """A binding whose arrays are filled before each step and read after it."""

    def __init__(
        self,
        binding: ort.IOBinding,
        inputs: dict[str, NDArray[Any]],
        values: NDArray[Any],
        seqlens: NDArray[np.int32],
        total: NDArray[np.int32],
        result: Floats,
    ) -> None:
        self.binding = binding
        self.inputs = inputs  # kept alive: ONNX Runtime knows their addresses only
        self.values = values
        self.seqlens = seqlens
        self.total = total
        self.result = result


def _logit_positions(length: int, every_position: bool) -> NDArray[np.int64]:
    first = 0 if every_position else length - 1
    return np.arange(first, length, dtype=np.int64)


def _bind_input(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

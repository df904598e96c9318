"""A stage's session without a model: units add numbers, so that the text is known beforehand.

Each unit adds its number and the sum of what the slot has seen so far, so a mixed-up slot, a lost
or a repeated step changes the tokens. `provider` chooses the behaviour: see `DoubleSession`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeshard.artifacts.store import Store
from edgeshard.errors import DeviceError
from edgeshard.runtime.sampler import draw
from edgeshard.runtime.stage_config import Session, StageConfig
from edgeshard.runtime.wire import Sampling
from edgeshard.runtime.wishes import Wishes
from edgeshard.schemas.common import Blob
from edgeshard.schemas.model import KvSpec, ModelManifest, Source, Unit
from edgeshard.schemas.shard import ShardManifest

VOCAB = 257
END = 256
HIDDEN = 4
MODULUS = 256
CONTEXT = 64
SLOTS = 2
UNITS = 6
KV = KvSpec(layout="static", num_kv_heads=1, head_dim=4)


class DoubleSession:
    """What computes instead of a shard.

    provider: `double`; `slow`: 10 ms a step; `hang`: never returns from position 8 on; `broken`:
    raises at position 8; `nan`: gives NaN to who starts there;
    `greedy`: takes 300 MiB when opened; `missing`: cannot be opened;
    `empty`: computes nothing, gives the same array again and the same token.
    """

    def __init__(self, shard: ShardManifest, provider: str = "double", slots: int = SLOTS) -> None:
        if provider == "missing":
            raise DeviceError("provider missing is not installed; it is only a test's")
        self._shard = shard
        self._provider = provider
        # For each slot, what each unit has seen up to each position.
        self._sums = [[np.zeros(shard.stop, np.int64)] for _ in range(slots)]
        self._ballast = np.ones(300 * 2**20, np.uint8) if provider == "greedy" else None
        self._given: dict[tuple[int, ...], NDArray[np.float32]] = {}  # of `empty`, by B and S

    def run(
        self, first_slot: int, positions: Sequence[int], values: NDArray[np.generic]
    ) -> NDArray[np.float32]:
        if self._provider == "empty":
            return self._nothing(values.shape[:2])
        position = max(positions)
        if self._provider == "slow":
            threading.Event().wait(0.01)
        if self._provider == "hang" and position >= 8:
            threading.Event().wait(600)
        if self._provider == "broken" and position >= 8:
            raise RuntimeError("the kernel fell over")
        rows = [
            self._run_row(slot, int(position), row)
            for slot, position, row in zip(
                range(first_slot, first_slot + len(values)), positions, values, strict=True
            )
        ]
        return np.concatenate(rows)

    def _nothing(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if shape not in self._given:
            full = (shape[0], VOCAB) if self._shard.has_head else (*shape, HIDDEN)
            self._given[shape] = np.zeros(full, np.float32)
        return self._given[shape]

    def _run_row(
        self, slot: int, position: int, values: NDArray[np.generic]
    ) -> NDArray[np.float32]:
        # What lies at `position` and behind is overwritten, as keys and values are.
        before = self._sums[slot][: position + 1]
        assert len(before) == position + 1
        num_tokens = len(values)
        numbers = (values if self._shard.has_embedding else values[:, 0]).astype(np.int64)
        for index in range(num_tokens):
            sums = before[-1].copy()
            for unit in range(self._shard.start, self._shard.stop):
                sums[unit] += numbers[index]
                numbers[index] = (numbers[index] + unit + sums[unit]) % MODULUS
            before.append(sums)
        self._sums[slot] = before
        if self._shard.has_head:
            logits = np.zeros((1, VOCAB), np.float32)
            logits[0, numbers[-1]] = 4.0
            logits[0, (numbers[-1] + 1) % MODULUS] = 3.5
            return logits
        hidden = np.zeros((1, num_tokens, HIDDEN), np.float32)
        hidden[0, :, 0] = numbers
        if self._provider == "nan" and position == 8:
            hidden[0, 0, 1] = np.nan
        return hidden

    def copy(self, source: int, target: int, length: int) -> None:
        self._sums[target] = list(self._sums[source][: length + 1])

    def close(self) -> None:
        self._ballast = None


def open_double(config: StageConfig) -> Session:
    return DoubleSession(config.shard, config.provider, config.slots)


def expected(
    prompt: bytes,
    num_tokens: int,
    sampling: Sampling | None = None,
    biases: dict[int, float] | None = None,
) -> list[int]:
    """The tokens of an answer, from all units in one place."""
    session = DoubleSession(shard_of(0, UNITS, Blob(digest=DIGEST, size_bytes=0, suffix=".onnx")))
    wishes = Wishes(sampling or Sampling(), set(prompt), biases or {})
    tokens: list[int] = []
    values, position = np.frombuffer(prompt, np.uint8).astype(np.int64), 0
    while len(tokens) < num_tokens:
        logits = session.run(0, [position], values[None])
        position += len(values)
        tokens.append(draw(logits[0], 0, wishes, position).token or 0)
        values = np.array(tokens[-1:], np.int64)
    return tokens


DIGEST = "sha256:" + "0" * 64


def shard_of(start: int, stop: int, graph: Blob, weights: tuple[Blob, ...] = ()) -> ShardManifest:
    return ShardManifest(
        model=DIGEST,
        target="portable",
        precision="fp32",
        start=start,
        stop=stop,
        num_units=UNITS,
        graph=graph,
        weights=weights,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        max_context=CONTEXT,
        kv=KV,
    )


def byte_tokenizer() -> Tokenizer:
    """A token is a byte: token ids of a text are its UTF-8 bytes, 256 is an end token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Byte-level characters, in the order of the bytes that they stand for.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    characters = [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
    assert set(characters) == set(alphabet)
    vocab = {character: byte for byte, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def put_model(store: Store, name: str = "double") -> tuple[ModelManifest, Blob]:
    """A model in a store, its blobs a few bytes each."""
    units = []
    for index in range(UNITS):
        kind = "embedding" if index == 0 else "head" if index == UNITS - 1 else "block"
        units.append(
            Unit(
                name=kind if kind != "block" else f"block.{index - 1}",
                kind=kind,  # type: ignore[arg-type]
                graph=store.put(f"graph {index}".encode(), ".onnx"),
                weights=(store.put(bytes([index]) * (1000 + index), ".safetensors"),),
                structure=DIGEST,
                num_parameters=1000,
            )
        )
    manifest = ModelManifest(
        name=name,
        architecture="LlamaForCausalLM",
        target="portable",
        precision="fp32",
        opset=21,
        num_blocks=UNITS - 2,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        max_context=CONTEXT,
        kv=KV,
        units=tuple(units),
        tokenizer=store.put(byte_tokenizer().to_str().encode(), ".json"),
        chat_template=store.put(b"{% for m in messages %}{{ m.content }}{% endfor %}?", ".jinja"),
        special_tokens={},
        eos_token_ids=(END,),
        source=Source(kind="safetensors", digest=DIGEST),
    )
    return manifest, store.put_model(manifest)


def fuse_double(
    store: Store, manifest: ModelManifest, model: Blob, start: int, stop: int
) -> tuple[ShardManifest, Blob]:
    """Fuse as the real one does, without a graph."""
    units = manifest.units[start:stop]
    weights = tuple(blob for unit in units for blob in unit.weights)
    graph = store.put(f"fused {start} {stop}".encode(), ".onnx")
    shard = shard_of(start, stop, graph, weights)
    return shard, store.put_shard(shard)

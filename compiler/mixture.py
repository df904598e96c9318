"""Which matrices get more than 4 bits, within a budget of bits a weight.

`mixed` fills the budget that a person gives with 6 and 8 bits, from blocks of 32; `int4` has blocks
of 64, which are read faster, and fills what is left of its 4.5 bits, or of those that a person
gives, with 8; below what zero points take it has none.

Rule: whoever gains most for a byte comes first. A gain is what int4 loses and int8 does not: on a
text measured as divergence, or from the weights alone as squared error over the squares of the
weights, counted by how much the kind of matrix matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgeshard.compiler.calibration import Calibration
from edgeshard.compiler.checkpoint import Checkpoint
from edgeshard.compiler.encoding import Encoding, block_encoding, decode, quantise
from edgeshard.compiler.stored import is_finite, widen
from edgeshard.errors import InputError

# Nats of divergence that all matrices of a kind cost in int4, as estimated with gradients on
# SmolLM2-135M (docs/adr/0017). They stand for other models only roughly: a calibration measures.
COSTS = {
    "v_proj": 0.081,
    "down_proj": 0.103,
    "embed_tokens": 0.083,
    "lm_head": 0.083,
    "k_proj": 0.009,
    "up_proj": 0.039,
    "q_proj": 0.011,
    "o_proj": 0.010,
    "gate_proj": 0.021,
    "qkv_proj": 0.101,
    "gate_up_proj": 0.060,
}
OTHER_COST = 0.03
# Of `mixed` unless a person asks for others: within 1 % of fp32's perplexity on SmolLM2-135M.
DEFAULT_BITS = 7.5
# Of a matrix's first piece are looked at: its error to a few per cent.
MAX_ROWS = 256
MAX_VALUES = 300_000


def mix(
    checkpoint: Checkpoint,
    matrices: Sequence[str],
    bits: float | None,
    calibration: Calibration,
) -> dict[str, Encoding]:
    """Choose the encoding of every matrix.

    Args:
        checkpoint: where the weights are.
        matrices: names of all of them.
        bits: most that a parameter of the model may take on average, scales and vectors included;
            None: `DEFAULT_BITS`, or what is in reach nearest to it.
        calibration: says what is gained; where it has no gains the weights do.

    Raises:
        InputError: all in int4 takes more, or all in int8 less.
    """
    low = {name: block_encoding(4, checkpoint.shape(name)[1], fine=True) for name in matrices}
    high = _in_8_bits(checkpoint, matrices)
    least, most = (_all_bits(checkpoint, chosen) for chosen in (low, high))
    if bits is None:
        spare = min(max(DEFAULT_BITS * _num_weights(checkpoint), least), most) - least
    else:
        spare = _spare(checkpoint, bits, least, most)
    options = {
        name: (low[name], block_encoding(6, checkpoint.shape(name)[1]), high[name])
        for name in matrices
    }

    def losses(name: str) -> list[float]:
        found = lost(checkpoint, name, options[name])
        saved = found[0] - found[-1]
        if name in calibration.gains:
            share = calibration.gains[name] / saved if saved > 0 else 0.0
        else:
            share = cost(name, matrices)
        return [share * loss for loss in found]

    with ThreadPoolExecutor() as pool:  # the loops over weights release the interpreter's lock
        costs = dict(zip(matrices, pool.map(losses, matrices), strict=True))
    sizes = {
        name: [_bits(checkpoint, {name: encoding})[name] for encoding in options[name]]
        for name in matrices
    }
    levels = spread(costs, sizes, spare)
    return {name: options[name][level] for name, level in levels.items()}


def fill(
    checkpoint: Checkpoint,
    low: Mapping[str, Encoding],
    bits: float,
    calibration: Calibration,
    *,
    is_asked: bool = False,
) -> dict[str, Encoding]:
    """Encodings that make the best of a budget: 8 bits for the matrices that gain most.

    Where 4 bits with zero points take more than was asked for, no matrix has zero points: with some
    only, products of one input would fall apart, and fewer bits are asked for to be fast
    (docs/adr/0040).

    Args:
        checkpoint: where the weights are.
        low: how all matrices would lie otherwise; floats and a file's own blocks stay as they are.
        bits: most that a parameter may take on average; none is raised where `low` takes more.
        calibration: as for `mix`.
        is_asked: a person wants these bits, and hears where they are out of reach.

    Raises:
        InputError: `is_asked`, and all in 4 bits without zero points take more than `bits`, or all
            in int8 less.
    """
    names = [name for name, encoding in low.items() if encoding.has_steps]
    high = _in_8_bits(checkpoint, names)
    wanted = bits * _num_weights(checkpoint)
    if is_asked and wanted < _all_bits(checkpoint, low):
        low = {**low, **_without_zeros(checkpoint, names)}
    least, most = (_all_bits(checkpoint, {**low, **chosen}) for chosen in ({}, high))
    spare = _spare(checkpoint, bits, least, most) if is_asked else wanted - least

    def gained(name: str) -> float:
        if name in calibration.gains:
            return calibration.gains[name]
        return cost(name, names) * gain(checkpoint, name, low[name], high[name])

    with ThreadPoolExecutor() as pool:  # the loops over weights release the interpreter's lock
        gains = dict(zip(names, pool.map(gained, names), strict=True))
    small, large = _bits(checkpoint, low), _bits(checkpoint, high)
    prices = {name: large[name] - small[name] for name in names}
    return {**low, **{name: high[name] for name in choose(gains, prices, spare)}}


def _spare(checkpoint: Checkpoint, bits: float, least: float, most: float) -> float:
    """What `bits` a parameter leave beyond `least` of all; limits are said so that they are met."""
    num_weights = _num_weights(checkpoint)
    if not least <= bits * num_weights <= most:
        raise InputError(
            f"--bits {bits:g} is out of reach for {checkpoint.path}: all in 4 bits takes "
            f"{math.ceil(100 * least / num_weights) / 100:.2f}, all in 8 "
            f"{math.floor(100 * most / num_weights) / 100:.2f}"
        )
    return bits * num_weights - least


def _in_8_bits(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Encoding]:
    return {name: block_encoding(8, checkpoint.shape(name)[1]) for name in names}


def _without_zeros(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Encoding]:
    return {name: block_encoding(4, checkpoint.shape(name)[1], zeros=False) for name in names}


def _num_weights(checkpoint: Checkpoint) -> int:
    return sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())


def _all_bits(checkpoint: Checkpoint, matrices: Mapping[str, Encoding]) -> float:
    """Bits of all parameters, with the matrices in these encodings and vectors in float32."""
    others = (name for name in checkpoint.names() if name not in matrices)
    vectors = 32 * sum(math.prod(checkpoint.shape(name)) for name in others)
    return vectors + sum(_bits(checkpoint, matrices).values())


def choose(gains: Mapping[str, float], prices: Mapping[str, float], budget: float) -> set[str]:
    """Names to pay for, by gain over price while the budget lasts; what is free is not chosen."""
    worth = sorted(
        (name for name in gains if prices[name] > 0),
        key=lambda name: (-gains[name] / prices[name], name),
    )
    chosen: set[str] = set()
    for name in worth:
        if prices[name] <= budget:
            budget -= prices[name]
            chosen.add(name)
    return chosen


def spread(
    costs: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[float]], budget: float
) -> dict[str, int]:
    """The level of each name, from 0: again and again the rise that saves most for its size.

    Args:
        costs: of each name at each level.
        sizes: likewise.
        budget: what all rises together may take.
    """
    levels = dict.fromkeys(costs, 0)

    def rises() -> Iterator[tuple[float, str, int]]:
        for name, now in levels.items():
            for level in range(now + 1, len(costs[name])):
                more = sizes[name][level] - sizes[name][now]
                saved = costs[name][now] - costs[name][level]
                if 0 < more <= budget and saved > 0:
                    yield -saved / more, name, level

    while best := min(rises(), default=None):
        _, name, level = best
        budget -= sizes[name][level] - sizes[name][levels[name]]
        levels[name] = level
    return levels


def cost(name: str, names: Sequence[str]) -> float:
    """What a matrix's share in the cost of its kind is."""
    kind = name.split(".")[-2]
    alike = sum(1 for other in names if other.split(".")[-2] == kind)
    return COSTS.get(kind, OTHER_COST) / alike


def gain(checkpoint: Checkpoint, name: str, low: Encoding, high: Encoding) -> float:
    """Relative squared error of a matrix in one encoding, less that in the other."""
    one, other = lost(checkpoint, name, (low, high))
    return one - other


def lost(checkpoint: Checkpoint, name: str, encodings: Sequence[Encoding]) -> list[float]:
    """Squared error of a matrix in some encodings, over its square."""
    piece = widen(next(iter(checkpoint.pieces(name))), checkpoint.stored_type(name))
    if not is_finite(piece):
        return [0.0] * len(encodings)  # the compile refuses it when it gets there
    num_rows = max(1, min(MAX_ROWS, MAX_VALUES // piece.shape[1]))
    rows = np.ascontiguousarray(piece[:: -(-len(piece) // num_rows)])
    total = float(np.square(rows, dtype=np.float64).sum())
    return [
        float(np.square(decode(quantise(rows, e), e) - rows, dtype=np.float64).sum()) / (total or 1)
        for e in encodings
    ]


def _bits(checkpoint: Checkpoint, encodings: Mapping[str, Encoding]) -> dict[str, float]:
    return {
        name: encoding.stored_bits(checkpoint.shape(name)[1]) * math.prod(checkpoint.shape(name))
        for name, encoding in encodings.items()
    }

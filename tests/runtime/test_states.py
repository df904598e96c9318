"""Hidden states on the wire: what each type keeps, what company changes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeshard.runtime.states import Floats, decode_states, encode_states
from edgeshard.runtime.wire import ProtocolError
from edgeshard.schemas.activation import BLOCK_VALUES, block_values, state_bytes
from edgeshard.schemas.common import Activation

TYPES: tuple[Activation, ...] = ("fp32", "fp16", "int8")
HIDDEN = 2 * BLOCK_VALUES

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([4, 24, HIDDEN]))
any_states = shapes.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-65504, 65504, width=32))
)


def there_and_back(states: Floats, activation: Activation) -> Floats:
    encoded = encode_states(states, activation)
    assert encoded.lost == ()
    num_rows, num_tokens, hidden = states.shape
    assert len(encoded.payload) == num_rows * num_tokens * state_bytes(hidden, activation)
    return decode_states(encoded.payload, activation, *states.shape)


@given(any_states)
def test_fp32_is_bit_equal(states: Floats) -> None:
    assert there_and_back(states, "fp32").tobytes() == states.tobytes()


@given(any_states)
def test_fp16_is_the_nearest_half(states: Floats) -> None:
    assert np.array_equal(there_and_back(states, "fp16"), states.astype(np.float16))


@given(any_states)
def test_int8_is_within_half_a_step_of_its_block(states: Floats) -> None:
    found = there_and_back(states, "int8")
    block = block_values(states.shape[2])
    peaks = np.abs(states).reshape(-1, block).max(axis=1, keepdims=True)
    error = np.abs(found - states).reshape(-1, block)
    assert (error <= peaks / 254 * (1 + 1e-5) + 2.0**-100).all()


@given(any_states, st.sampled_from(TYPES))
def test_company_and_chunks_change_nothing(states: Floats, activation: Activation) -> None:
    together = there_and_back(states, activation)
    for row in range(states.shape[0]):
        for token in range(states.shape[1]):
            alone = there_and_back(states[row : row + 1, token : token + 1], activation)
            assert np.array_equal(alone[0, 0], together[row, token])


@given(any_states)
def test_states_that_were_rounded_once_stay(states: Floats) -> None:
    once = there_and_back(states, "int8")
    assert np.allclose(there_and_back(once, "int8"), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ["fp16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_and_hurts_no_other(
    activation: Activation, value: float
) -> None:
    states = np.random.default_rng(1).normal(size=(3, 2, HIDDEN)).astype(np.float32)
    kept = there_and_back(states, activation)
    states[1, 0, 5] = value
    encoded = encode_states(states, activation)
    found = decode_states(encoded.payload, activation, *states.shape)
    assert encoded.lost == (1,)
    assert np.array_equal(found[[0, 2]], kept[[0, 2]])
    assert not found[1].any()


def test_what_fp16_cannot_hold_is_named() -> None:
    states = np.full((2, 1, 4), 1, np.float32)
    states[1, 0, 2] = 70000
    assert encode_states(states, "fp16").lost == (1,)
    assert encode_states(states, "int8").lost == ()


@pytest.mark.parametrize("activation", ["fp16", "int8"])
def test_a_payload_that_no_encoder_makes_is_refused(activation: Activation) -> None:
    size = state_bytes(HIDDEN, activation)
    with pytest.raises(ProtocolError, match="is not finite"):
        decode_states(memoryview(b"\xff" * size), activation, 1, 1, HIDDEN)


def test_int8_takes_little_more_than_a_quarter() -> None:
    assert state_bytes(576, "fp32") == 2304
    assert state_bytes(576, "fp16") == 1152
    assert state_bytes(576, "int8") == 576 + 4 * 576 // BLOCK_VALUES
    assert state_bytes(6, "int8") == 6 + 4 * 3  # blocks of 2: what of a block divides it

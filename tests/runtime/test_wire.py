"""The codec gives back what it took, and refuses everything else with one kind of error."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshard.runtime import ask, control, wire

settings.register_profile("runtime", derandomize=True, deadline=None, max_examples=300)

counts = st.integers(0, 2**63 - 1)
samplings = st.builds(
    wire.Sampling,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31),
    top_p=st.floats(0.01, 1),
    seed=counts,
    repetition=st.floats(0.01, 100),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    logprobs=st.none() | st.integers(0, wire.MAX_LIKELY),
)
token_ids = st.integers(0, 2**31)
clocks = st.floats(0, 1e12)
marks = st.builds(wire.Marks, clocks, clocks, clocks, clocks, clocks)
stage_messages = st.one_of(
    st.builds(
        wire.Open,
        counts,
        counts,
        counts,
        samplings,
        st.none() | st.builds(wire.Kept, counts, counts, st.integers(1, 2**31)),
        counts,
        counts,
    ),
    st.builds(
        wire.Seen,
        counts,
        counts,
        counts,
        st.lists(token_ids, min_size=1, max_size=9).map(tuple),
    ),
    st.builds(
        wire.Bias,
        counts,
        counts,
        counts,
        st.lists(st.tuples(token_ids, st.floats(-100, 100)), min_size=1, max_size=9).map(tuple),
    ),
    st.builds(
        wire.Step,
        counts,
        counts,
        counts,
        st.lists(st.builds(wire.Row, counts, counts), min_size=1, max_size=wire.MAX_ROWS).map(
            tuple
        ),
        st.integers(1, 2**31),
        st.booleans(),
        st.floats(0, 1e6),
        st.none() | st.lists(marks, max_size=wire.MAX_TIMED_STAGES).map(tuple),
    ),
    st.builds(wire.Close, counts, counts, counts),
    st.builds(wire.Fault, counts, counts, counts, st.text(max_size=100)),
    st.builds(wire.Trace, counts, counts, counts),
)


@settings(settings.get_profile("runtime"))
@given(stage_messages)
def test_a_message_is_read_back(message: wire.StageMessage) -> None:
    header = wire.encode(message)
    assert len(header) <= wire.MAX_HEADER_BYTES
    assert wire.stage_codec.decode(header) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.Seen(2**62, 2**62, 2**62, (2**31,) * wire.MAX_SEEN),
        wire.Bias(2**62, 2**62, 2**62, ((2**31, 0.1),) * wire.MAX_BIASES),
        wire.Step(2**62, 2**62, 2**62, (wire.Row(2**62, 2**62),) * wire.MAX_ROWS, 2**31, True),
    ],
)
def test_the_longest_lists_fit_into_a_header(message: wire.StageMessage) -> None:
    assert len(wire.encode(message)) <= wire.MAX_HEADER_BYTES


def test_the_most_log_probabilities_fit_into_what_comes_back() -> None:
    likely = (wire.Likely(2**31, -0.1),) * wire.MAX_LIKELY
    rows = (wire.Sampled(2**62, 2**31, -0.1, likely),) * wire.MAX_ROWS
    message = wire.Token(2**62, 2**62, rows, 0.1)
    assert wire.return_codec.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.Seen(1, 2, 3, (1,) * (wire.MAX_SEEN + 1)),
        wire.Seen(1, 2, 3, ()),
        wire.Bias(1, 2, 3, ((1, 100.5),)),
        wire.Bias(1, 2, 3, ((1, float("nan")),)),
        wire.Bias(1, 2, 3, ((-1, 0.0),)),
        wire.Open(1, 2, 3, wire.Sampling(repetition=0)),
        wire.Open(1, 2, 3, wire.Sampling(presence=2.5)),
        wire.Open(1, 2, 3, wire.Sampling(frequency=float("nan"))),
        wire.Open(1, 2, 3, wire.Sampling(logprobs=wire.MAX_LIKELY + 1)),
    ],
)
def test_lists_and_samplings_out_of_range_are_refused(message: wire.StageMessage) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.stage_codec.decode(wire.encode(message))


DECODERS: list[Callable[[bytes], object]] = [
    wire.stage_codec.decode,
    wire.return_codec.decode,
    ask.ask_codec.decode,
    ask.event_codec.decode,
    control.request_codec.decode,
    control.reply_codec.decode,
]


@settings(settings.get_profile("runtime"))
@given(st.binary(max_size=200), st.booleans(), st.sampled_from(range(len(DECODERS))))
def test_hostile_bytes_are_refused_by_name(data: bytes, has_prefix: bool, codec: int) -> None:
    header = bytes([69, 83, wire.MAJOR, 0]) + data if has_prefix else data
    try:
        DECODERS[codec](header)
    except wire.ProtocolError:
        return
    assert has_prefix


@settings(settings.get_profile("runtime"))
@given(stage_messages, st.data())
def test_a_changed_message_is_a_message_or_refused(
    message: wire.StageMessage, data: st.DataObject
) -> None:
    header = bytearray(wire.encode(message))
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(header)))
    try:
        decoded = wire.stage_codec.decode(bytes(header[: cut or None]))
    except wire.ProtocolError:
        return
    assert wire.stage_codec.decode(wire.encode(decoded)) is not None


def test_another_major_version_is_refused_by_name() -> None:
    header = bytearray(wire.encode(wire.Close(1, 2, 3)))
    header[2] = wire.MAJOR + 1
    with pytest.raises(wire.ProtocolError, match=rf"protocol {wire.MAJOR + 1}\.0.*{wire.MAJOR}\.0"):
        wire.stage_codec.decode(bytes(header))


def test_an_unknown_field_is_refused() -> None:
    header = bytes([69, 83, wire.MAJOR, 0]) + msgspec.msgpack.encode(["close", 1, 2, 3, 4])
    with pytest.raises(wire.ProtocolError):
        wire.stage_codec.decode(header)


def test_a_long_header_is_refused() -> None:
    with pytest.raises(wire.ProtocolError, match="at most 4096"):
        wire.stage_codec.decode(bytes(4097))


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_a_sampling_out_of_range_is_refused(temperature: float) -> None:
    message = wire.Open(1, 2, 3, wire.Sampling(temperature))
    with pytest.raises(wire.ProtocolError):
        wire.stage_codec.decode(wire.encode(message))


@pytest.mark.parametrize("count", [0, 3, 9])
def test_another_number_of_parts_is_refused(count: int) -> None:
    with pytest.raises(wire.ProtocolError, match="parts"):
        wire.split([memoryview(b"x")] * count)


def test_the_longest_traced_step_fits_into_a_header() -> None:
    largest = 2**63 - 1
    rows = (wire.Row(largest, largest),) * wire.MAX_ROWS
    marks = (wire.Marks(*[0.1] * 5),) * wire.MAX_TIMED_STAGES
    step = wire.Step(largest, largest, largest, rows, 2**31, True, 0.1, marks)
    assert len(wire.encode(step)) <= wire.MAX_HEADER_BYTES


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_mark_that_is_no_time_is_refused(seconds: float) -> None:
    step = wire.Step(1, 1, 1, (wire.Row(1, 1),), 1, True, 0.0, (wire.Marks(*[seconds] * 5),))
    with pytest.raises(wire.ProtocolError, match="float"):
        wire.stage_codec.decode(wire.encode(step))

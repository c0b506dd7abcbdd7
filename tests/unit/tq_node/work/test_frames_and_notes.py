"""The values of the room: frames, notebooks, results and errors, captured output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_node import Reject, Retry, limits
from tq_node.types import LogLine, Progress, TaskError
from tq_node.work import protocol
from tq_node.work.output import Output
from tq_node.work.progress_buffer import ProgressBuffer
from tq_node.work.protocol import BadFrame, FrameReader
from tq_node.work.results import BadResult, decode_payload, describe, encode_result, make_error

FROM_WORKER: list[protocol.FromWorker] = [
    protocol.Hello(7),
    protocol.Broken("why"),
    protocol.Said(1, Progress(0.5, "ü"), (LogLine(1, "a"),), 3),
    protocol.Renewed(1, 2.5),
    protocol.Done(2, b"null"),
    protocol.Done(3, b"null", 5, printed=True),
    protocol.NotBegun(4),
    protocol.Failed(3, TaskError("T", "m", None), 5, final=True, leaving=True),
]
TO_WORKER: list[protocol.ToWorker] = [
    protocol.Start(("a",), ("", "/x"), None),
    protocol.Run(1, "t", "x", b"{}", 1, 2, 3, None, 4.5),
]
MESSAGES: list[protocol.Run | protocol.Follows] = [
    protocol.Run(1, "t", "x", b"{}", 1, 2, 3, 1.5, 4.5, 7),
    protocol.Follows(2),
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_frames_come_out_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b"".join(protocol.encode(frame) for frame in FROM_WORKER)
    reader: FrameReader[Any] = FrameReader(protocol.FromWorker)
    seen: list[Any] = []
    for cut in cuts:
        seen += reader.feed(data[:cut])
        data = data[cut:]
    seen += reader.feed(data)
    assert seen == FROM_WORKER


def test_frames_to_the_worker() -> None:
    reader: FrameReader[Any] = FrameReader(protocol.ToWorker)
    assert [frame for sent in TO_WORKER for frame in reader.feed(protocol.encode(sent))] == TO_WORKER
    control: FrameReader[Any] = FrameReader(protocol.ToWorkerControl)
    assert control.feed(protocol.encode(protocol.Lease(1, 2.0)) + protocol.encode(protocol.Cancel(1))) == [
        protocol.Lease(1, 2.0),
        protocol.Cancel(1),
    ]
    assert [protocol.decode_message(protocol.encode_message(message)) for message in MESSAGES] == MESSAGES


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_frames_wait_or_are_refused(data: bytes) -> None:
    reader: FrameReader[Any] = FrameReader(protocol.FromWorker)
    try:
        reader.feed(data)
    except BadFrame:
        return


def test_a_length_over_the_bound_is_refused_before_the_bytes_come() -> None:
    reader: FrameReader[Any] = FrameReader(protocol.FromWorker)
    with pytest.raises(BadFrame, match="is over"):
        reader.feed((limits.CHILD_FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(BadFrame, match="is over"):
        protocol.encode(protocol.Done(1, b"x" * limits.CHILD_FRAME_BYTES_MAX))
    big = protocol.Run(1, "t", "x", b"x" * (16 * limits.MIB), 1, 2, 3, None, 4.5)
    tasks: FrameReader[Any] = FrameReader(protocol.ToWorker, protocol.RUN_BYTES_MAX)
    assert tasks.feed(protocol.encode(big, protocol.RUN_BYTES_MAX)) == [big]


# --- notebook ---
def test_a_notebook_keeps_the_newest_and_counts_the_rest() -> None:
    changes: list[int] = []
    notebook = ProgressBuffer(lambda: changes.append(1))
    assert notebook.take() is None
    for number in range(limits.LOG_LINES_MAX + 7):
        notebook.add_line(str(number))
    noted = notebook.take()
    assert noted is not None
    assert [line.line for line in noted.lines] == [str(number) for number in range(7, limits.LOG_LINES_MAX + 7)]
    assert noted.dropped == 7
    assert notebook.take() is None
    assert len(changes) == limits.LOG_LINES_MAX + 7


def test_lines_and_notes_are_cut_and_can_be_written() -> None:
    notebook = ProgressBuffer()
    notebook.add_line("x" * 10_000)
    notebook.add_line("a\udcff\r\nb\n\nc")
    notebook.add_line("")
    notebook.set_progress(0.5, "y" * 10_000)
    noted = notebook.take()
    assert noted is not None
    lines = [line.line for line in noted.lines]
    assert lines[0] == "x" * (limits.LOG_LINE_CHARS_MAX - 1) + "…"
    assert lines[1:] == ["a?", "b", "", "c", ""]
    assert noted.progress is not None
    assert noted.progress.note is not None
    assert len(noted.progress.note) == limits.PROGRESS_NOTE_CHARS_MAX


def test_progress_is_a_number_between_0_and_1() -> None:
    notebook = ProgressBuffer()
    for given_fraction, kept in ((-1, 0.0), (0.25, 0.25), (float("inf"), 1.0)):
        notebook.set_progress(given_fraction, None)
        noted = notebook.take()
        assert noted is not None
        assert noted.progress == Progress(kept, None)
    with pytest.raises(ValueError, match="NaN"):
        notebook.set_progress(float("nan"), None)
    with pytest.raises(TypeError):
        notebook.set_progress(None, None)  # type: ignore[arg-type]


# --- results ---
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_what_is_json_is_kept_as_it_is(value: Any) -> None:
    assert json.loads(encode_result(value)) == value
    assert decode_payload(encode_result(value)) == value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {1},
        b"x",
        float("nan"),
        [float("inf")],
        object(),
        {(1, 2): 3},
        "\udcff",
        ["\udcff"],
        cycle(),
        deep(),
        test_frames_to_the_worker,
    ],
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(BadResult) as refused:
        encode_result(value)
    assert refused.value.error.type == "result_not_json"


def test_a_payload_may_hold_what_msgspec_refuses() -> None:
    assert decode_payload(b'"\\ud800"') == "\ud800"


def test_errors_are_cut() -> None:
    error = make_error("T" * 1000, "m" * 10_000, "x" * 10_000 + "end")
    assert len(error.type) == limits.ERROR_TYPE_CHARS_MAX
    assert len(error.message) == limits.ERROR_MESSAGE_CHARS_MAX
    assert error.traceback is not None
    assert len(error.traceback) == limits.ERROR_TRACEBACK_CHARS_MAX
    assert error.traceback.endswith("end")


def test_what_an_exception_means() -> None:
    assert describe(Retry(1.5)) == (TaskError("Retry", "asked to be tried again in 1.5 s"), 1500, False)
    assert describe(Retry(0, "not yet"))[0].message == "not yet"
    assert describe(Reject("never")) == (TaskError("Reject", "never"), None, True)
    assert describe(GeneratorExit())[0].type == "worker_died"


def recurse(depth: int) -> None:
    recurse(depth + 1)


def test_an_endless_recursion_can_be_described() -> None:
    with pytest.raises(RecursionError) as raised:
        recurse(0)
    error, _, _ = describe(raised.value)
    assert error.type == "RecursionError"


# --- output ---
@given(st.text(alphabet="ab\n\r", max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_output_is_cut_into_lines_however_it_comes(text: str, cuts: list[int]) -> None:
    output, data, seen = Output(), text.encode(), []
    for cut in cuts:
        seen += output.feed(data[:cut])
        data = data[cut:]
    seen += output.feed(data)
    assert output.byte_count == len(text)
    seen += output.finish()
    lines = text.split("\n")
    assert seen == [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    assert output.byte_count == 0


def test_a_line_without_end_is_not_held() -> None:
    output = Output()
    for _ in range(1000):
        assert output.feed(b"x" * 8192) == []
    assert len(output._partial) <= 4 * limits.LOG_LINE_CHARS_MAX
    (line,) = output.finish()
    assert len(line) <= 4 * limits.LOG_LINE_CHARS_MAX
    assert output.feed(b"\xff\n") == ["\ufffd"]

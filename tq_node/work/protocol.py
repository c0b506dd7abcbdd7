"""What the node and a worker process say to each other: length-prefixed msgpack, bounded, over
pipes.

A frame is four bytes of length (big endian) and a body; in ``TASK_FD``, where each message has its
bounds, it is the body alone. ``serial`` counts the tasks of one worker process; it keeps a frame
that comes late from touching the next task. Every ``until`` is a time of CLOCK_MONOTONIC, which all
processes of a machine share: a renewal that lies unread in a pipe does not grow by that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from tq_node import limits
from tq_node.types import LogLine, Progress, TaskError
from tq_node.work.process_environment import Bounds

# The descriptors of a worker process. 0 is /dev/null, 1 and 2 are captured.
RUN_FD = 3
REPORT_FD = 4
CONTROL_FD = 5
LOCK_FD = 6
TASK_FD = 7
"""Messages that can be taken back, see ``channel``; what is too long comes through ``RUN_FD``."""

_PREFIX_BYTES = 4
RUN_BYTES_MAX = (1 << 31) - 1
"""Of a frame from the node, whose payload the API has bounded already, by an option."""
MESSAGE_BYTES_MAX = 32 * limits.KIB
"""A longer task is announced by ``Follows``. Several such fit into a socket's default buffer."""


class Start(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """Node to worker, once, first: what to load. ``pythonpath`` and ``umask`` are as they were
    before the node set its own."""

    modules: tuple[str, ...]
    path: tuple[str, ...]
    pythonpath: str | None
    umask: int | None = None
    bounds: Bounds = Bounds()
    middleware: tuple[str, ...] = ()
    """See ``middleware.found``."""


class Run(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """Node to worker: run this. ``timeout_s`` counts from its start. ``heard``: the last task
    known to have printed."""

    serial: int
    task_id: str
    task_type: str
    payload: bytes
    attempt: int
    epoch: int
    sequence: int
    timeout_s: float | None
    lease_until: float
    heard: int = 0
    queue: str = ""
    max_attempts: int = 0
    failures: int = 0
    created_us: int = 0
    tags: dict[str, str] | None = None


class Follows(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Node to worker: the task of this number, too long for a message, comes through ``RUN_FD``."""

    serial: int


class Lease(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """Control: the attempt may run until then."""

    serial: int
    until: float


class Cancel(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """Control: the attempt should end; ``context.cancelled`` becomes True."""

    serial: int


class Hello(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=10):
    """Worker to node, once: the handlers are loaded, tasks may come."""

    pid: int


class Broken(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """Worker to node instead of Hello: why it can't work. It ends by itself."""

    message: str


class Said(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=12):
    """Worker to node: progress and lines while the handler runs."""

    serial: int
    progress: Progress | None
    lines: tuple[LogLine, ...]
    dropped: int


class Renewed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=15):
    """Worker to node: the timer is set to that. Without it the process is taken for stopped."""

    serial: int
    until: float


class Done(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=13):
    """Worker to node: the handler returned. ``result``: JSON within ``limits.RESULT_BYTES_MAX``."""

    serial: int
    result: bytes
    ran_us: int = 0
    """From its first step to its last."""
    printed: bool = False
    """What it printed lies in the pipe, or some of it."""
    leaving: bool = False
    """The process ends after this, for its handler has changed what can't be put back."""


class NotBegun(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=16):
    """Worker to node: a task was turned back: one before it printed, unknown to the node when it
    sent this one. If both printed, nobody could say whose lines they are."""

    serial: int


class Failed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=14):
    """Worker to node: the handler failed. The fields mean what they mean in
    ``facade.AttemptFailed``; ``leaving``: the process ends after this (the handler raised
    SystemExit or its like) and can take no further task."""

    serial: int
    error: TaskError
    retry_in_ms: int | None = None
    final: bool = False
    leaving: bool = False
    ran_us: int = 0
    printed: bool = False


class Lapsed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=17):
    """Worker to node: an attempt's lease was about to end; its handler was cancelled, and ended."""

    serial: int


ToWorker = Start | Run
ToWorkerControl = Lease | Cancel
ToLoop = Start | Run | Lease | Cancel
"""To a worker process with an event loop, all through ``RUN_FD``: so they arrive in order."""
FromWorker = Hello | Broken | Said | Renewed | Done | NotBegun | Failed | Lapsed
Frame = TypeVar("Frame")


class BadFrame(Exception):
    """Bytes that are no frame of ours, or one over the bound. The pipe is of no further use."""


_encode = msgspec.msgpack.Encoder().encode


encode_message = _encode
decode_message: Callable[[bytes], Run | Follows] = msgspec.msgpack.Decoder(Run | Follows).decode


def encode(frame: ToWorker | ToWorkerControl | FromWorker, bytes_max: int = limits.CHILD_FRAME_BYTES_MAX) -> bytes:
    """The frame's bytes; raises ``BadFrame`` for more than the receiver accepts."""
    body = _encode(frame)
    if len(body) > bytes_max:
        raise BadFrame(f"a frame of {len(body)} bytes is over {bytes_max}")
    return framed(body)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(_PREFIX_BYTES, "big") + body


class FrameReader(Generic[Frame]):
    """Bytes in, frames out. Holds at most one incomplete frame, of at most ``bytes_max``."""

    def __init__(self, kind: Any, bytes_max: int = limits.CHILD_FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._decode: Callable[[bytes | memoryview], Frame] = msgspec.msgpack.Decoder(kind).decode
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _PREFIX_BYTES

    def feed(self, data: bytes) -> list[Frame]:
        """:raises BadFrame: what came is not a frame; nothing may be fed afterwards."""
        self._parts.append(data)
        self._have += len(data)
        # Parts are joined once the frame is whole: 1 MiB comes in more than a hundred reads.
        if self._have < self._need:
            return []
        buffer = memoryview(data if len(self._parts) == 1 else b"".join(self._parts))
        frames: list[Frame] = []
        start, end = 0, len(buffer)
        while True:
            self._need = _PREFIX_BYTES
            if end - start < _PREFIX_BYTES:
                break
            length = int.from_bytes(buffer[start : start + _PREFIX_BYTES], "big")
            if length > self._bytes_max:
                raise BadFrame(f"a frame of {length} bytes is over {self._bytes_max}")
            self._need += length
            if end - start < self._need:
                break
            try:
                frames.append(self._decode(buffer[start + _PREFIX_BYTES : start + self._need]))
            except (msgspec.MsgspecError, UnicodeDecodeError) as why:
                raise BadFrame(f"a frame can't be decoded: {why}") from None
            start += self._need
        self._have = end - start
        self._parts = [bytes(buffer[start:])] if self._have else []
        return frames

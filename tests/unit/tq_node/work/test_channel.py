"""Tasks on their way to a worker process: who takes one has it alone."""

from __future__ import annotations

import os

from tq_node.work import frames
from tq_node.work.channel import TaskChannel


def message(serial: int, size: int = 2) -> bytes:
    return frames.encode_message(frames.Run(serial, f"t{serial}", "x", b"x" * size, 1, 2, 3, None, 4.5))


def taken(channel: TaskChannel) -> int:
    """As the process does it."""
    return frames.decode_message(os.read(channel.fileno(), frames.MESSAGE_BYTES_MAX)).serial


def test_what_was_taken_is_not_taken_back() -> None:
    channel = TaskChannel()
    for serial in range(1, 6):
        assert channel.send(message(serial))
    assert [taken(channel), taken(channel)] == [1, 2]
    assert channel.take_back() == [3, 4, 5]
    assert channel.take_back() == []
    assert channel.send(frames.encode_message(frames.Follows(6)))
    assert taken(channel) == 6
    channel.close()


def test_a_message_is_whole_or_not_there_at_all() -> None:
    channel = TaskChannel()
    long = message(1, frames.MESSAGE_BYTES_MAX - 100)
    sent = 0
    while channel.send(long):
        sent += 1
        assert sent < 1000
    assert sent >= 2
    assert channel.take_back() == [1] * sent
    channel.close()


def test_its_end_is_heard_after_what_is_there() -> None:
    channel = TaskChannel()
    channel.send(message(1))
    channel.end()
    assert not channel.send(message(2))
    assert taken(channel) == 1
    assert os.read(channel.fileno(), 100) == b""
    assert channel.take_back() == []
    channel.close()
    channel.close()

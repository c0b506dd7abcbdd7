"""Tasks on their way to a worker process: who takes one has it alone."""

from __future__ import annotations

import os

from tq_node.work import protocol
from tq_node.work.task_socket import TaskSocket


def message(serial: int, size: int = 2) -> bytes:
    return protocol.encode_message(protocol.Run(serial, f"t{serial}", "x", b"x" * size, 1, 2, 3, None, 4.5))


def taken(channel: TaskSocket) -> int:
    """As the process does it."""
    return protocol.decode_message(os.read(channel.fileno(), protocol.MESSAGE_BYTES_MAX)).serial


def test_what_was_taken_is_not_taken_back() -> None:
    channel = TaskSocket()
    for serial in range(1, 6):
        assert channel.send(message(serial))
    assert [taken(channel), taken(channel)] == [1, 2]
    assert channel.take_back() == [3, 4, 5]
    assert channel.take_back() == []
    assert channel.send(protocol.encode_message(protocol.Follows(6)))
    assert taken(channel) == 6
    channel.close()


def test_a_message_is_whole_or_not_there_at_all() -> None:
    channel = TaskSocket()
    long = message(1, protocol.MESSAGE_BYTES_MAX - 100)
    sent = 0
    while channel.send(long):
        sent += 1
        assert sent < 1000
    assert sent >= 2
    assert channel.take_back() == [1] * sent
    channel.close()


def test_its_end_is_heard_after_what_is_there() -> None:
    channel = TaskSocket()
    channel.send(message(1))
    channel.end()
    assert not channel.send(message(2))
    assert taken(channel) == 1
    assert os.read(channel.fileno(), 100) == b""
    assert channel.take_back() == []
    channel.close()
    channel.close()

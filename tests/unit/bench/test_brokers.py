"""Our clients of brokers, against sockets that say what brokers say: in pieces, out of order, refusing."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.peers import amqp, nats
from bench.peers.raw import Wrong
from bench.processes import HOST


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that talks so with the first who comes."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.settimeout(30)
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join(30)


def hear(connection: socket.socket, end: bytes) -> bytes:
    """All that comes, up to what ends so."""
    said = b""
    while not said.endswith(end):
        more = connection.recv(4096)
        assert more, f"the client has gone after {said!r}"
        said += more
    return said


# --- AMQP ---
def method(class_: int, number: int, arguments: bytes = b"", channel: int = 1) -> bytes:
    payload = struct.pack("!HH", class_, number) + arguments
    return struct.pack("!BHI", 1, channel, len(payload)) + payload + b"\xce"


def ack(tag: int, *, multiple: bool = False) -> bytes:
    return method(60, 80, struct.pack("!QB", tag, multiple))


def deliver(tag: int) -> bytes:
    content = b"x" * 10
    return (
        method(60, 60, b"\x05bench" + struct.pack("!QB", tag, 0) + b"\x00\x05bench")
        + struct.pack("!BHI", 2, 1, 14) + struct.pack("!HHQH", 60, 0, len(content), 0) + b"\xce"
        + struct.pack("!BHI", 3, 1, len(content)) + content + b"\xce"
    )  # fmt: skip


def open_channel(connection: socket.socket) -> None:
    """The broker's side of the handshake: start, tune, open; then channel 1."""
    hear(connection, b"AMQP\x00\x00\x09\x01")
    connection.sendall(method(10, 10, channel=0))
    hear(connection, b"en_US\xce")
    connection.sendall(method(10, 30, struct.pack("!HIH", 2047, 131_072, 60), channel=0))
    hear(connection, struct.pack("!HH", 10, 40) + b"\x01/\x00\x00\xce")
    connection.sendall(method(10, 41, b"\x00", channel=0))
    hear(connection, struct.pack("!HH", 20, 10) + b"\x00\xce")
    connection.sendall(method(20, 11, bytes(4)))


def in_pieces(connection: socket.socket, data: bytes) -> None:
    for at in range(0, len(data), 7):
        connection.sendall(data[at : at + 7])


def confirmations(channel: amqp.Channel, wanted: int) -> int:
    count = 0
    while count < wanted:
        count += channel.confirmed()
    return count


def test_confirmations_are_counted_once_though_they_overtake_one_another() -> None:
    def talk(connection: socket.socket) -> None:
        open_channel(connection)
        in_pieces(connection, ack(3) + ack(7) + ack(5, multiple=True) + ack(6, multiple=True) + ack(8) + ack(9))
        connection.recv(1)

    with serving(talk) as port:
        channel = amqp.Channel(port)
        try:
            assert confirmations(channel, 9) == 9
        finally:
            channel.close()


def test_a_message_that_the_broker_refuses_is_no_confirmation() -> None:
    def talk(connection: socket.socket) -> None:
        open_channel(connection)
        connection.sendall(method(60, 120, struct.pack("!QB", 1, 0)))
        connection.recv(1)

    with serving(talk) as port:
        channel = amqp.Channel(port)
        try:
            with pytest.raises(Wrong, match="60, 120"):
                channel.confirmed()
        finally:
            channel.close()


def test_only_messages_that_have_come_whole_are_acknowledged() -> None:
    acknowledged: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        open_channel(connection)
        in_pieces(connection, deliver(1) + deliver(2) + deliver(3))
        acknowledged.append(hear(connection, ack(3)))

    with serving(talk) as port:
        channel = amqp.Channel(port)
        try:
            got: list[int] = []
            while len(got) < 3:
                count, tags = channel.delivered()
                assert count == len(tags)
                got += tags
            channel.acknowledge(got)
            assert got == [1, 2, 3]
        finally:
            channel.close()
    assert acknowledged == [ack(1) + ack(2) + ack(3)]


# --- NATS ---
def meet(connection: socket.socket) -> str:
    """The server's side of the beginning; the client's inbox."""
    connection.sendall(b'INFO {"headers":true}\r\n')
    said = hear(connection, b"PING\r\n")
    connection.sendall(b"PONG\r\n")
    return said.split(b"SUB ")[1].split(b" ")[0].decode()


def test_acknowledgements_of_publishes_are_counted_also_in_pieces() -> None:
    def talk(connection: socket.socket) -> None:
        inbox = meet(connection)
        hear(connection, nats.CONTENT + b"\r\n")
        answer = b'{"stream":"bench", "seq":1}'
        in_pieces(connection, f"MSG {inbox} 1 {len(answer)}\r\n".encode() + answer + b"\r\n")
        in_pieces(connection, b"PING\r\n" + f"MSG {inbox} 1 {len(answer)}\r\n".encode() + answer + b"\r\n")
        connection.recv(4096)

    with serving(talk) as port:
        connection = nats.Connection(port)
        try:
            connection.publish(2)
            count = 0
            while count < 2:
                count += connection.confirmed()
            assert count == 2
        finally:
            connection.close()


def test_a_publish_that_the_stream_refuses_is_no_acknowledgement() -> None:
    def talk(connection: socket.socket) -> None:
        inbox = meet(connection)
        hear(connection, nats.CONTENT + b"\r\n")
        answer = b'{"error":{"code":503},"stream":"bench"}'
        connection.sendall(f"MSG {inbox} 1 {len(answer)}\r\n".encode() + answer + b"\r\n")
        connection.recv(4096)

    with serving(talk) as port:
        connection = nats.Connection(port)
        try:
            connection.publish(1)
            with pytest.raises(Wrong, match="503"):
                connection.confirmed()
        finally:
            connection.close()


def test_messages_are_acknowledged_to_whom_they_name() -> None:
    heard = bytearray()

    def talk(connection: socket.socket) -> None:
        meet(connection)
        heard.extend(hear(connection, b"}\r\n"))
        lines = "".join(f"MSG bench.tasks 1 $JS.ACK.{number} 2\r\nhi\r\n" for number in (1, 2))
        connection.sendall(lines.encode())
        while not heard.endswith(b"$JS.ACK.2 4\r\n+ACK\r\n"):
            heard.extend(connection.recv(4096))

    with serving(talk) as port:
        connection = nats.Connection(port)
        try:
            connection.consume(500)
            got = 0
            while got < 2:
                count, replies = connection.delivered()
                connection.acknowledge(replies)
                got += count
        finally:
            connection.close()
    assert heard.count(b"CONSUMER.MSG.NEXT") == 1
    assert b"PUB $JS.ACK.1 4\r\n+ACK\r\n" in heard

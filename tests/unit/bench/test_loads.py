"""The load generators against small servers that count: nothing is lost, nothing wrong passes, bytes are bytes."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from bench import sockets
from bench.load import offer
from bench.peers import raw
from bench.processes import HOST, Failed


class Server(http.server.ThreadingHTTPServer):
    """Answers every POST with 201, unless told otherwise."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.answer = b'{"success":true}'
        self.wrong_at: int | None = None
        self.busy = 0
        self.busiest = 0
        self.lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.bodies.append(body)
            server.paths.append(self.path)
            wrong = len(server.bodies) == server.wrong_at
            server.busy -= 1
        answer = b'{"success":false}' if wrong else server.answer
        self.send_response(HTTPStatus.CREATED)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
        """Nothing."""


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    servers = [Server() for _ in range(3)]
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.shutdown()
        for thread, server in zip(threads, servers, strict=True):
            thread.join()
            server.server_close()


def ports(servers: list[Server]) -> list[int]:
    return [server.server_address[1] for server in servers]


def test_so_many_requests_are_spread_over_all_and_no_more(servers: list[Server], tmp_path: Path) -> None:
    load = offer(
        ports(servers), ["/a", "/b"], {"n": 1}, connections=4, processes=2, requests=41, directory=tmp_path,
        prefix='{"success":true',
    )  # fmt: skip

    got = [len(server.bodies) for server in servers]
    assert load.requests == sum(got) == 41
    assert min(got) > 0
    assert {body for server in servers for body in server.bodies} == {b'{"n":1}'}
    assert {path for server in servers for path in server.paths} == {"/a", "/b"}
    assert load.rate > 0
    assert load.p50_ms <= load.p99_ms
    assert load.wire_bytes > len(b'{"n":1}') + len(b'{"success":true}')


def test_one_in_flight_goes_to_each_node_in_turn(servers: list[Server], tmp_path: Path) -> None:
    offer(ports(servers), "/", {}, connections=3, in_flight=1, requests=9, directory=tmp_path)

    assert [len(server.bodies) for server in servers] == [3, 3, 3]
    assert max(server.busiest for server in servers) == 1


def test_every_answer_within_the_time_is_counted(servers: list[Server], tmp_path: Path) -> None:
    load = offer(ports(servers), "/", {}, connections=3, seconds=0.5, directory=tmp_path)

    assert load.requests == sum(len(server.bodies) for server in servers)


def test_a_wrong_answer_is_shown(servers: list[Server], tmp_path: Path) -> None:
    servers[0].wrong_at = 2

    with pytest.raises(Failed, match=r'"success":false'):
        offer(ports(servers[:1]), "/", {}, connections=1, requests=5, directory=tmp_path, prefix='{"success":true')


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        with pytest.raises(Failed, match="refused"):
            offer([nobody.getsockname()[1]], "/", {}, connections=1, requests=1, directory=tmp_path)


def test_the_kernel_tells_how_many_bytes_went_over_a_connection() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection((HOST, port)) as one, server.accept()[0] as other:
            before, _ = sockets.received([port])
            one.sendall(bytes(70_000))
            left = 70_000
            while left:
                left -= len(other.recv(left))
            other.sendall(bytes(500))
            left = 500
            while left:
                left -= len(one.recv(left))
            after, segments = sockets.received([port])

    assert after - before == 70_500
    assert segments >= 2


class Echo:
    """A speaker whose broker confirms what was published when it is asked, in portions."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.published = 0

    def fileno(self) -> int:
        return self.near.fileno()

    def publish(self, count: int) -> None:
        self.published += count
        self.far.sendall(bytes(count))

    def confirmed(self) -> int:
        return len(self.near.recv(3))

    def close(self) -> None:
        self.near.close()
        self.far.close()


def test_a_batch_at_a_broker_is_done_when_all_of_it_is_confirmed() -> None:
    speakers = [Echo(), Echo()]
    try:
        shown = raw.produce(speakers, 10, in_flight=2, count=7)
    finally:
        for speaker in speakers:
            speaker.close()

    assert shown["total"] == sum(speaker.published for speaker in speakers) == 70
    assert all(speaker.published for speaker in speakers)


def test_of_batches_what_was_accepted_counts_and_what_was_refused_for_now_is_told(
    servers: list[Server], tmp_path: Path
) -> None:
    refusal = '{"error":{"code":"busy"}}'
    servers[0].answer = f'{{"success":true,"accepted":8,"rejected":2,"results":[{refusal},{refusal}]}}'.encode()

    load = offer(
        ports(servers[:1]), "/", {}, connections=2, requests=6, directory=tmp_path, prefix='{"success":true,', batch=10
    )

    assert (load.requests, load.accepted, load.refused) == (6, 48, 12)
    assert load.accepted_rate > 0


def test_a_task_of_a_batch_that_was_refused_for_good_is_shown(servers: list[Server], tmp_path: Path) -> None:
    servers[0].answer = b'{"success":true,"accepted":9,"rejected":1,"results":[{"error":{"code":"invalid_field"}}]}'

    with pytest.raises(Failed, match="invalid_field"):
        offer(ports(servers[:1]), "/", {}, connections=1, requests=1, directory=tmp_path, status=201, batch=10,
              prefix='{"success":true,')  # fmt: skip

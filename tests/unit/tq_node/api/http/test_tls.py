"""HTTPS: the bounds of plain HTTP, certificates that change, and who is let in."""

from __future__ import annotations

import gc
import random
import ssl
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from unittest import mock

import pytest

from tests.support.certificates import HOSTS, make_ca, trusting
from tests.unit.tq_node.api.talk import Transport, replies_in
from tests.unit.tq_node.api.tls_talk import Client, Https, turn
from tq_node import limits
from tq_node.api.http import tls

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SUBMIT = b'POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{"type":"a"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("ca"), f"node-1={HOSTS}", f"node-2={HOSTS}", "client")


@pytest.fixture
def https(folder: Path, tmp_path: Path) -> Iterator[Https]:
    world = Https(folder, tmp_path)
    yield world
    world.close()


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that goes on with each look."""
    return partial(next, count(0.0, step_s))


# --- requests ---
@pytest.mark.parametrize("request_", [GET, SUBMIT], ids=["long", "hot"])
def test_requests_are_answered_inside_the_call_that_brings_them(https: Https, request_: bytes) -> None:
    client = https.greeted()
    for _ in range(2):
        client.send(request_)
        (reply,) = client.replies()
        assert reply.status in (200, 201)


def test_a_long_answer_is_whole(https: Https) -> None:
    client = https.greeted()
    client.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (reply,) = client.replies()
    assert len(reply.body) > 2**15
    assert reply.json["openapi"]


def test_a_request_may_name_the_scheme_that_it_came_by_and_no_other(https: Https) -> None:
    client = https.greeted()
    for scheme, status in ((b"https", 200), (b"http", 421)):
        client.send(b"GET %b://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n" % scheme)
        (reply,) = client.replies()
        assert reply.status == status


@pytest.mark.parametrize(("origin", "status"), [(b"https://localhost:8080", 201), (b"http://localhost:8080", 403)])
def test_a_page_that_came_without_tls_is_of_another_site(https: Https, origin: bytes, status: int) -> None:
    client = https.greeted()
    client.send(SUBMIT.replace(b"Host: localhost", b"Host: localhost:8080\r\nOrigin: %b" % origin))
    (reply,) = client.replies()
    assert reply.status == status


def test_http_1_1_is_agreed_on_and_nothing_else(https: Https) -> None:
    context = trusting(https.folder)
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert https.greeted(context).tls.selected_alpn_protocol() == "http/1.1"
    context.set_alpn_protocols(["h2"])
    assert https.greeted(context).tls.selected_alpn_protocol() is None


@pytest.mark.parametrize(("version", "is_taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_1_2_or_later(https: Https, version: str, is_taken: bool) -> None:
    context = trusting(https.folder)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if is_taken:
        assert https.greeted(context).tls.version() == version.replace("_", ".")
    else:
        with pytest.raises(ssl.SSLError):
            https.greeted(context)


# --- who is let in ---
def test_with_an_authority_for_clients_only_its_certificates_get_in(folder: Path, tmp_path: Path) -> None:
    world = Https(folder, tmp_path, asks_clients=True)
    known = world.greeted(trusting(folder, "client"))
    known.send(GET)
    assert known.replies()[0].status == 200
    unknown = world.greeted()  # with TLS 1.3 a client only learns it from what follows
    unknown.send(GET)
    with pytest.raises(ssl.SSLError, match="certificate"):
        unknown.received()
    assert unknown.transport.lost
    world.close()


# --- the wrong protocol ---
@pytest.mark.parametrize("said", [GET, b"G", b"\x80\x2e\x01\x00\x02"])
def test_who_speaks_no_tls_is_told_so_in_plain_http(https: Https, said: bytes) -> None:
    client = https.dial()
    client.protocol.dataReceived(said)
    client.protocol.dataReceived(GET)
    (reply,) = replies_in(client.transport.value())
    assert reply.status == 400
    assert reply.code == "malformed"
    assert "https://" in reply.json["detail"]
    assert reply.headers["connection"] == "close"
    assert client.transport.is_half_closed
    https.clock.advance(10.0)
    assert client.transport.lost


def test_noise_ends_the_connection_alone(https: Https) -> None:
    client, other = https.dial(), https.greeted()
    client.protocol.dataReceived(b"\x16" * 100)
    https.clock.advance(0)
    assert client.transport.lost
    other.send(GET)
    assert other.replies()[0].status == 200


# --- certificates that change ---
def serial(client: Client) -> object:
    certificate = client.tls.getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


def test_a_changed_certificate_is_shown_to_new_connections_and_open_ones_go_on(https: Https) -> None:
    before = https.greeted()
    https.put("node-2")
    https.files.look()
    after = https.greeted()
    assert serial(after) != serial(before)
    for client in (before, after):
        client.send(SUBMIT)
        assert client.replies()[0].status == 201


def test_a_broken_certificate_changes_nothing_and_says_so(https: Https) -> None:
    before = serial(https.greeted())
    (https.place / "tls.crt").write_text("no certificate")
    https.files.look()
    https.files.look()
    assert serial(https.greeted()) == before
    assert "holds no certificate" in str(https.files.trouble)


# --- bounds ---
def test_some_milliseconds_of_handshakes_a_turn(https: Https) -> None:
    https.factory.handshakes.now_s = ticking(limits.SLICE_MS / 2000)
    clients = [https.dial() for _ in range(5)]
    for client in clients:
        client.hello()
    assert not any(client.transport.value() for client in clients)
    for number in (2, 4, 5):
        turn(https.clock)
        assert sum(bool(client.transport.value()) for client in clients) == number


def test_one_handshake_a_turn_however_long_it_takes(https: Https) -> None:
    https.factory.handshakes.now_s = ticking(1.0)
    clients = [https.dial() for _ in range(3)]
    for client in clients:
        client.hello()
    for number in range(1, 4):
        turn(https.clock)
        assert sum(bool(client.transport.value()) for client in clients) == number


def test_who_waits_for_the_node_is_not_slow(https: Https) -> None:
    client = https.dial()
    with mock.patch.object(https.factory.handshakes, "_run"):  # it does not come to it
        client.hello()
        for _ in range(int(limits.HTTP_HEAD_S) + 3):
            https.clock.advance(1.0)
    assert not client.transport.lost
    https.factory.handshakes._run()
    client.fetch()
    client.shake_hands()
    client.send(GET)
    assert client.replies()[0].status == 200


def test_a_hello_in_pieces_has_its_turn_once_it_is_whole(https: Https) -> None:
    clients = [https.dial() for _ in range(3)]
    for client in clients:
        with suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        said = client.outgoing.read()
        for at in range(0, len(said), 100):
            assert not client.transport.value()
            client.protocol.dataReceived(said[at : at + 100])
            assert len(https.factory.handshakes) == clients.index(client) + (at + 100 >= len(said))
    turn(https.clock)
    for client in clients:
        client.fetch()
        client.shake_hands()
        client.send(GET)
        assert client.replies()[0].status == 200


def test_who_hangs_up_while_others_have_their_turn_is_forgotten(https: Https) -> None:
    clients = [https.dial() for _ in range(3)]
    for client in clients:
        client.hello()
    Transport.hang_up(clients[0].transport)
    turn(https.clock)
    assert [len(client.transport.value()) > 500 for client in clients] == [False, True, True], (
        "one gets an alert at most"
    )


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"])
def test_a_handshake_ends_within_ten_seconds(https: Https, said: bytes) -> None:
    slow, done = https.dial(), https.greeted()
    if said:
        slow.protocol.dataReceived(said)
    for _ in range(int(limits.HTTP_HEAD_S) + 2):
        https.clock.advance(1.0)
    assert slow.transport.aborted
    assert not done.transport.lost
    done.send(GET)
    assert done.replies()[0].status == 200


def test_who_says_nothing_after_the_handshake_is_idle(https: Https) -> None:
    client = https.greeted()
    https.clock.pump([1.0] * (limits.HTTP_IDLE_S - 1))
    assert not client.transport.lost
    https.clock.pump([1.0] * 3)
    assert client.transport.lost


def test_a_head_that_stops_is_reset(https: Https) -> None:
    client = https.greeted()
    client.send(GET[:-2])
    https.clock.pump([1.0] * (int(limits.HTTP_HEAD_S) + 2))
    assert client.transport.aborted


@pytest.mark.parametrize("how", ["close", "http/1.0"])
def test_an_end_is_an_end_though_the_client_never_says_his(https: Https, how: str) -> None:
    client = https.greeted()
    client.send(GET.replace(b"1.1", b"1.0") if how == "http/1.0" else GET[:-2] + b"Connection: close\r\n\r\n")
    (reply,) = client.replies()
    https.clock.advance(0)
    assert (reply.status, client.has_ended, client.transport.lost) == (200, True, True)


def test_a_refused_body_is_answered_before_the_end(https: Https) -> None:
    client = https.greeted()
    client.send(b"POST /tasks/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
    (reply,) = client.replies()
    assert reply.status == 413
    client.send(b"x" * 1_000)  # read, and dropped
    https.clock.advance(10.0)
    https.clock.advance(0)
    assert client.transport.lost


def test_what_is_malformed_is_answered_and_the_write_side_ends(https: Https) -> None:
    client = https.greeted()
    client.send(b"NONSENSE\r\n\r\n")
    assert client.replies()[0].status == 400
    assert client.has_ended
    assert client.transport.is_half_closed
    https.clock.advance(10.0)
    assert client.transport.lost


def test_what_the_socket_does_not_take_is_counted_and_nothing_more_is_read(https: Https) -> None:
    client = https.greeted()
    write, producer = client.transport.write, client.transport.producer
    assert producer is not None, "the channel learns from the socket when to pause"

    def full(data: bytes) -> None:
        write(data)
        producer.pauseProducing()

    client.transport.write = full  # type: ignore[method-assign]
    client.send(GET * 2)
    first = client.received()
    assert len(replies_in(first)) == 1
    assert https.site.server.connections.unsent_bytes > limits.UNSENT_UNCOUNTED_BYTES
    client.transport.write = write  # type: ignore[method-assign]
    producer.resumeProducing()
    assert https.site.server.connections.unsent_bytes == 0
    assert len(client.replies()) == 1


def test_a_full_site_takes_no_more(https: Https) -> None:
    https.site.server.closing = True
    assert https.factory.buildProtocol(https.peer) is None


def test_of_too_many_handshakes_that_are_left_the_oldest_are_reset(https: Https) -> None:
    done = https.greeted()
    with mock.patch.object(limits, "HANDSHAKES_BEGUN_MAX", 3):
        clients = [https.dial() for _ in range(5)]
        for client in clients:
            client.hello()
            https.clock.advance(0)
    assert [client.transport.aborted for client in clients] == [True, True, False, False, False]
    clients[2].fetch()
    clients[2].shake_hands()
    for client in (done, clients[2]):
        client.send(GET)
        assert client.replies()[0].status == 200


def test_what_ends_is_forgotten_at_once_and_waits_for_no_collector(https: Https) -> None:
    """Of OpenSSL's memory, some 30 KiB a connection, the collector knows nothing: it would come too late."""

    def gone(client: Client) -> weakref.ref[object]:
        kept = weakref.ref[object](client.protocol._tlsConnection)
        client.transport.hang_up()
        https.clock.advance(0)
        client.transport.protocol = client.transport.producer = None
        return kept

    half = https.dial()
    half.hello()
    https.clock.advance(0)
    asked = https.greeted()
    asked.send(GET)
    assert asked.replies()
    gc.collect()
    gc.disable()
    try:
        assert [gone(client)() for client in (https.dial(), half, asked)] == [None] * 3
    finally:
        gc.enable()


def test_memory_is_given_back_once_many_have_closed(https: Https) -> None:
    with mock.patch.object(limits, "TLS_CLOSED_MANY", 3), mock.patch.object(tls, "give_memory_back") as given:
        clients = [https.dial() for _ in range(4)]
        for number, client in enumerate(clients):
            client.transport.hang_up()
            https.clock.advance(0)
            https.clock.advance(limits.TLS_FREE_S)
            assert given.called == (number >= 2)
        assert given.call_count == 1
    tls.give_memory_back()


def test_memory_is_given_back_once_much_was_not_sent(https: Https) -> None:
    with mock.patch.object(tls, "give_memory_back") as given:
        for number in range(2):
            client = https.dial()
            client.transport.dataBuffer = bytes(limits.TLS_UNSENT_MANY_BYTES // 2)  # type: ignore[attr-defined]
            client.transport.hang_up()
            https.clock.advance(0)
            https.clock.advance(limits.TLS_FREE_S)
            assert given.called == (number == 1)


# --- records ---
@pytest.mark.parametrize("seed", range(20))
def test_requests_are_read_however_their_records_are_cut(https: Https, seed: int) -> None:
    """Records come alone, several at once, and in pieces; each request is answered once."""
    dice = random.Random(seed)
    client = https.greeted()
    ids = [f"task-{number}" for number in range(30)]
    said = b""
    for task_id in ids:
        body = b'{"type":"a","id":"%b","payload":"%b"}' % (task_id.encode(), b"x" * dice.choice([0, 10, 20_000]))
        client.tls.write(
            b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        said += client.outgoing.read()
        if dice.random() < 0.5:
            https.clock.advance(0)
            client.protocol.dataReceived(said)
            said = b""
        while said and dice.random() < 0.5:
            cut = dice.randint(1, len(said))
            client.protocol.dataReceived(said[:cut])
            said = said[cut:]
    if said:
        client.protocol.dataReceived(said)
    https.clock.advance(0)
    assert [reply.json["task_id"] for reply in client.replies()] == ids


def test_a_client_that_says_its_end_is_gone(https: Https) -> None:
    client = https.greeted()
    client.send(GET)
    assert client.replies()[0].status == 200
    with suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.flush()
    https.clock.advance(0)
    assert client.transport.lost


def test_a_record_that_was_changed_on_the_way_ends_the_connection_and_is_no_request(https: Https) -> None:
    client = https.greeted()
    client.tls.write(SUBMIT)
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    client.protocol.dataReceived(bytes(record))
    https.clock.advance(0)
    assert client.transport.lost
    assert https.get("/tasks/stats").json["stats"]["total"] == 0

"""What RFC 9112 and RFC 9110 want refused, and what they want taken, over both ways in: each request whole, and cut in two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tq_node.api.talk import World

BODY = b'{"type":"a"}'
GET = b"GET /tasks/status?id=known HTTP/1.1\r\n"
POST = b"POST /tasks/submit HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
LENGTH = b"Content-Length: 12\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def submit(*lines: bytes, start: bytes = POST, host: bytes = HOST, body: bytes = LENGTH) -> bytes:
    return start + host + body + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + BODY


def chunks(data: bytes, *lines: bytes) -> bytes:
    return POST + HOST + CHUNKED + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + data


def get(target: bytes, *, host: bytes = HOST, version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return b"%b %b %b\r\n%b\r\n" % (method, target, version, host)


MALFORMED = {
    # Host (RFC 9112 section 3.2)
    "no host": submit(host=b""),
    "no host, get": GET + b"\r\n",
    "two hosts": submit(host=HOST + HOST),
    "two hosts, get": GET + HOST + b"Host: 127.0.0.1\r\n\r\n",
    "two hosts of HTTP/1.0": b"GET /health HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
    "an empty host": submit(host=b"Host:\r\n"),
    "a host with a path": submit(host=b"Host: localhost/x\r\n"),
    "a host with a user": submit(host=b"Host: me@localhost\r\n"),
    "a host with a blank": submit(host=b"Host: local host\r\n"),
    "a host with a scheme": submit(host=b"Host: http://localhost\r\n"),
    "two names in one host": submit(host=b"Host: localhost, evil.example\r\n"),
    "a host of bytes": submit(host=b"Host: \xff\xfe\r\n"),
    "a host with a bad escape": submit(host=b"Host: local%zz\r\n"),
    "a port that is a word": submit(host=b"Host: localhost:x\r\n"),
    "a port too high": submit(host=b"Host: localhost:65536\r\n"),
    "a port too long": submit(host=b"Host: localhost:000080\r\n"),
    "a bracket too few": submit(host=b"Host: [::1\r\n"),
    "an address without brackets": submit(host=b"Host: ::1\r\n"),
    "no address in brackets": submit(host=b"Host: [::1::2]\r\n"),
    # Header lines (RFC 9112 section 5)
    "a folded line": submit(b"X-Long: a", b" b"),
    "a folded line with a tab": submit(b"X-Long: a", b"\tb"),
    "a folded known line": submit(b"Accept: a", b" b"),
    "a folded host": submit(host=b"Host:\r\n localhost\r\n"),
    "a blank before the first header": POST + b" " + HOST + LENGTH + b"\r\n" + BODY,
    "a blank before the colon": submit(b"Accept : a"),
    "a tab before the colon": submit(b"Accept\t: a"),
    "a line without a colon": submit(b"no colon"),
    "an empty name": submit(b": a"),
    "a name with a blank": submit(b"X Long: a"),
    "a name in brackets": submit(b"X[0]: a"),
    "a name of bytes": submit(b"X-\xfc: a"),
    "NUL in a name": submit(b"X\x00: a"),
    "NUL in a value": submit(b"Accept: a\x00b"),
    "CR in a value": submit(b"Accept: a\rb"),
    "LF in a value": submit(b"Accept: a\nb: c"),
    "a header over 16 KiB": submit(b"Accept: " + b"a" * 17_000),
    "a header of 60,000 bytes": submit(b"User-Agent: " + b"a" * 60_000),
    "headers over 16 KiB together": submit(*(b"X-%d: " % number + b"a" * 400 for number in range(50))),
    "101 headers": submit(*(b"X-%d: y" % number for number in range(101))),
    "two idempotency keys": submit(b"Idempotency-Key: a", b"Idempotency-Key: b"),
    "the same idempotency key twice": submit(b"Idempotency-Key: a", b"idempotency-key: a"),
    "two content types": submit(b"Content-Type: application/json", b"Content-Type: text/plain"),
    "fetch's word twice": submit(b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: none"),
    "two origins": submit(b"Origin: http://localhost", b"Origin: http://localhost"),
    # Request line (RFC 9112 section 3)
    "no version": submit(start=b"POST /tasks/submit\r\n"),
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": submit(start=b"POST /tasks/submit HTTP/1.2\r\n"),
    "HTTP/2.0": submit(start=b"POST /tasks/submit HTTP/2.0\r\n"),
    "HTTP/9.9": get(b"/health", version=b"HTTP/9.9"),
    "a version in small letters": submit(start=b"POST /tasks/submit http/1.1\r\n"),
    "a long version": submit(start=b"POST /tasks/submit HTTP/1.10\r\n"),
    "a version without a point": submit(start=b"POST /tasks/submit HTTP/11\r\n"),
    "another protocol": submit(start=b"POST /tasks/submit ICAP/1.0\r\n"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two blanks": submit(start=b"POST  /tasks/submit HTTP/1.1\r\n"),
    "a blank at the end": submit(start=b"POST /tasks/submit HTTP/1.1 \r\n"),
    "a blank at the start": submit(start=b" POST /tasks/submit HTTP/1.1\r\n"),
    "a tab for a blank": submit(start=b"POST\t/tasks/submit\tHTTP/1.1\r\n"),
    "CR in the line": submit(start=b"POST /tasks/submit\rHTTP/1.1\r\n"),
    "NUL in the line": submit(start=b"POST /tasks/sub\x00mit HTTP/1.1\r\n"),
    "a method that is no token": submit(start=b"P@ST /tasks/submit HTTP/1.1\r\n"),
    "no method": submit(start=b" /tasks/submit HTTP/1.1\r\n"),
    "a fragment": get(b"/health#x"),
    "bytes in the target": get(b"/tasks/status?id=\xb0"),
    "DEL in the target": get(b"/tasks/status?id=\x7f"),
    "a target of 20,000 bytes": get(b"/tasks/status?id=" + b"a" * 20_000),
    "an escaped path": get(b"/tasks%2Fstats"),
    "a doubled slash": get(b"//tasks/stats"),
    "a path without a slash": get(b"health"),
    "an asterisk with GET": get(b"*"),
    "CONNECT": get(b"localhost:80", method=b"CONNECT"),
    "an address without a host": get(b"http:///health"),
    "an address with a user": get(b"http://me@localhost/health"),
    "an address, and no host": get(b"http://localhost/health", host=b""),
    "an address, and a host that is none": get(b"http://localhost/health", host=b"Host: a b\r\n"),
    # Length of the body (RFC 9112 section 6)
    "two lengths": submit(b"Content-Length: 12"),
    "two lengths that differ": submit(b"Content-Length: 11"),
    "a list of lengths": submit(body=b"Content-Length: 12, 12\r\n"),
    "a length with a sign": submit(body=b"Content-Length: +12\r\n"),
    "a negative length": submit(body=b"Content-Length: -12\r\n"),
    "a length in hexadecimal": submit(body=b"Content-Length: 0xc\r\n"),
    "a length with an underscore": submit(body=b"Content-Length: 1_2\r\n"),
    "a length with a point": submit(body=b"Content-Length: 12.0\r\n"),
    "an empty length": submit(body=b"Content-Length:\r\n"),
    "a length in other digits": submit(body="Content-Length: ١٢\r\n".encode()),
    "a length of 5,000 digits": submit(body=b"Content-Length: " + b"9" * 5_000 + b"\r\n"),
    "a length and chunks": submit(b"Transfer-Encoding: chunked"),
    "chunks and a length": POST + HOST + CHUNKED + LENGTH + b"\r\n" + BODY,
    "identity and a length": submit(b"Transfer-Encoding: identity"),
    "gzip": chunks(b"").replace(b"chunked", b"gzip"),
    "gzip and chunks": chunks(b"0\r\n\r\n").replace(b"chunked", b"gzip, chunked"),
    "chunks twice": chunks(b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "chunks under another name": chunks(b"").replace(b"chunked", b"xchunked"),
    "chunks in HTTP/1.0": chunks(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    # Chunks (RFC 9112 section 7.1)
    "a chunk size that is a word": chunks(b"ZZ\r\n"),
    "a chunk size with a prefix": chunks(b"0xc\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk size with a sign": chunks(b"+c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a negative chunk": chunks(b"-c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk size with an underscore": chunks(b"0_c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a blank before a chunk size": chunks(b" c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "an empty chunk size": chunks(b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk line over 1 KiB": chunks(b"c;" + b"a" * 2_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunks(b"b\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "NUL in a chunk extension": chunks(b"c;a\x00\r\n" + BODY + b"\r\n0\r\n\r\n"),
    # Lines that end without CR, and what is no HTTP
    "LF alone": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "LF alone after the first line": b"GET /health HTTP/1.1\r\nHost: localhost\n\n",
    "LF before the line": b"\nGET /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(32)) + b"\x20",
    "old SSL": bytes.fromhex("802e0103010015000000100100800300"),
    "zeros": bytes(100),
}

REFUSED = {
    "another name": (submit(host=b"Host: evil.example\r\n"), 421, "misdirected"),
    "another name, get": (GET + b"Host: evil.example:8080\r\n\r\n", 421, "misdirected"),
    "another name for a page": (get(b"/", host=b"Host: evil.example\r\n"), 421, "misdirected"),
    "another name for health": (get(b"/health", host=b"Host: evil.example\r\n"), 421, "misdirected"),
    "another name for metrics": (get(b"/metrics", host=b"Host: evil.example\r\n"), 421, "misdirected"),
    "another name of HTTP/1.0": (get(b"/health", host=b"Host: x\r\n", version=b"HTTP/1.0"), 421, "misdirected"),
    "a name that ends as ours": (submit(host=b"Host: xlocalhost\r\n"), 421, "misdirected"),
    "a name that begins as ours": (submit(host=b"Host: localhost.evil.example\r\n"), 421, "misdirected"),
    "a name below ours": (submit(host=b"Host: evil.localhost\r\n"), 421, "misdirected"),
    "an address in short": (submit(host=b"Host: 127.1\r\n"), 421, "misdirected"),
    "an address as one number": (submit(host=b"Host: 2130706433\r\n"), 421, "misdirected"),
    "an address that goes on": (submit(host=b"Host: 127.0.0.1.evil.example\r\n"), 421, "misdirected"),
    "another address in the target": (get(b"http://evil.example/health"), 421, "misdirected"),
    "an https address": (get(b"https://localhost/health"), 421, "misdirected"),
    "its own origin under another name": (
        submit(b"Origin: http://evil.example", host=b"Host: evil.example\r\n"),
        421,
        "misdirected",
    ),
    "a page elsewhere": (submit(b"Origin: http://evil.example"), 403, "cross_origin"),
    "a page without an origin": (submit(b"Origin: null"), 403, "cross_origin"),
    "a page on another port": (submit(b"Origin: http://localhost:3000"), 403, "cross_origin"),
    "a page elsewhere, by fetch's word": (submit(b"Sec-Fetch-Site: cross-site"), 403, "cross_origin"),
    "a page of the same site": (submit(b"Sec-Fetch-Site: same-site"), 403, "cross_origin"),
    "an unknown method": (get(b"/tasks/submit", method=b"BREW"), 405, "method_not_allowed"),
    "a method in small letters": (get(b"/health", method=b"get"), 405, "method_not_allowed"),
    "TRACE": (get(b"/health", method=b"TRACE"), 405, "method_not_allowed"),
    "OPTIONS for all": (get(b"*", method=b"OPTIONS"), 405, "method_not_allowed"),
    "no such path": (get(b"/nothing"), 404, "not_found"),
    "a body of another type": (submit(b"Content-Type: text/xml"), 415, "not_json"),
    "a body that is compressed": (submit(b"Content-Encoding: gzip"), 415, "not_json"),
}

TAKEN = {
    "a plain one": (submit(), 201),
    "another spelling of the name": (submit(host=b"Host: LOCALHOST.\r\n"), 201),
    "no port after the colon": (submit(host=b"Host: localhost:\r\n"), 201),
    "an IPv4 address": (submit(host=b"Host: 192.0.2.1:8080\r\n"), 201),
    "an IPv6 address": (submit(host=b"Host: [2001:db8::1]:8080\r\n"), 201),
    "blanks around the value": (submit(host=b"Host: \t localhost \t\r\n"), 201),
    "a header's name in capitals": (submit(host=b"HOST: localhost\r\n"), 201),
    "no blank after the colon": (submit(host=b"Host:localhost\r\n"), 201),
    "a page of its own": (submit(b"Origin: http://localhost", b"Sec-Fetch-Site: same-origin"), 201),
    "a reader's own click": (submit(b"Sec-Fetch-Site: none"), 201),
    "one key": (submit(b"Idempotency-Key: a"), 201),
    "an empty line before": (b"\r\n" + submit(), 201),
    "99 headers": (submit(*(b"X-%d: y" % number for number in range(97))), 201),
    "headers of 16,000 bytes": (submit(b"User-Agent: " + b"a" * 15_800), 201),
    "chunks": (chunks(b"5\r\n" + BODY[:5] + b"\r\n7;ext=1\r\n" + BODY[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n"), 201),
    "chunks in capitals": (chunks(b"C\r\n" + BODY + b"\r\n0\r\n\r\n").replace(b"chunked", b"Chunked"), 201),
    "a length with zeros": (submit(body=b"Content-Length: 000012\r\n"), 201),
    "an address for a target": (submit(start=b"POST http://localhost/tasks/submit HTTP/1.1\r\n"), 201),
    "that address counts, not the host": (get(b"HTTP://127.0.0.1:1/health", host=b"Host: evil.example\r\n"), 200),
    "an address without a path": (get(b"http://localhost"), 200),
    "an address with a query alone": (get(b"http://localhost?x=1"), 200),
    "HTTP/1.0 without a host": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "HTTP/1.0 with a host": (get(b"/health", version=b"HTTP/1.0"), 200),
    "a GET with a body": (get(b"/health", host=HOST + LENGTH) + BODY, 200),
    "quotes in a query": (get(b'/tasks/list?q="a"'), 200),
    "a page that only reads": (get(b"/health", host=HOST + b"Sec-Fetch-Site: cross-site\r\n"), 200),
}


@pytest.fixture(scope="module", params=[False, True], ids=["klein", "direct"])
def site(request: pytest.FixtureRequest) -> Iterator[World]:
    """One for the whole table: nothing of one request may be left for the next."""
    world = World(fast_path=request.param)
    yield world
    world.close()


def cut(data: bytes) -> list[list[bytes]]:
    return [[data], [data[: len(data) // 2], data[len(data) // 2 :]]]


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_http_is_400_at_once_and_the_end(site: World, name: str) -> None:
    site.queue.calls.clear()
    for pieces in cut(MALFORMED[name]):
        client = site.connect()
        for piece in pieces:
            client.send(piece)
        (reply,) = client.replies()
        assert (reply.status, reply.code) == (400, "malformed")
        # What comes behind it is not read as a request.
        client.send(submit())
        assert len(client.replies()) == 1
        assert client.has_ended()
    assert not site.queue.calls


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_its_head(site: World, name: str) -> None:
    data, status, code = REFUSED[name]
    site.queue.calls.clear()
    for pieces in cut(data):
        client = site.connect()
        for piece in pieces:
            client.send(piece)
        (reply,) = client.replies()
        assert (reply.status, reply.code) == (status, code)
    assert not site.queue.calls


@pytest.mark.parametrize("name", TAKEN)
def test_what_must_be_taken(site: World, name: str) -> None:
    data, status = TAKEN[name]
    for number, pieces in enumerate(cut(data)):
        client = site.connect()
        for piece in pieces:
            client.send(piece)
        site.clock.advance(0)
        (reply,) = client.replies()
        assert reply.status == (200 if number and b"Idempotency-Key" in data else status), reply.body


class TestRefusedBeforeTheBody:
    HEADS = {
        "404": b"POST /nothing HTTP/1.1\r\n" + HOST,
        "405": b"PUT /tasks/submit HTTP/1.1\r\n" + HOST,
        "415": POST + HOST + b"Content-Type: text/plain\r\n",
        "403": POST + HOST + b"Origin: http://evil.example\r\n",
        "421": POST + b"Host: evil.example\r\n",
        "413": POST + HOST,
        "400": POST + HOST + HOST,
    }

    @pytest.mark.parametrize("status", HEADS)
    @pytest.mark.parametrize("asks", [True, False], ids=["asks", "sends"])
    def test_a_long_body_is_not_waited_for(self, world: World, status: str, asks: bool) -> None:
        expect = b"Expect: 100-continue\r\n" if asks else b""
        client = world.connect()
        client.send(self.HEADS[status] + b"Content-Length: 1000000000\r\n" + expect + b"\r\n")
        (reply,) = client.replies()
        assert (reply.status, reply.headers["connection"]) == (int(status), "close")
        # The sender may go on for a moment, so that it gets to read the answer instead of a reset.
        assert not client.is_gone()
        client.send(b"x" * 10_000)
        world.clock.advance(5)
        assert client.is_gone()
        assert len(client.replies()) == 1

    @pytest.mark.parametrize("status", [status for status in HEADS if status != "413"])
    def test_who_asks_gets_no_continue(self, world: World, status: str) -> None:
        client = world.connect()
        client.send(self.HEADS[status] + LENGTH + b"Expect: 100-continue\r\n\r\n")
        (reply,) = client.replies()
        assert (reply.status, reply.headers["connection"]) == (int(status), "close")
        client.send(BODY)
        assert len(client.replies()) == 1
        world.clock.advance(5)
        assert client.is_gone()

    @pytest.mark.parametrize("status", ["404", "405", "415", "403", "421"])
    def test_chunks_are_not_waited_for(self, world: World, status: str) -> None:
        client = world.connect()
        client.send(self.HEADS[status] + CHUNKED + b"\r\n")
        (reply,) = client.replies()
        assert (reply.status, reply.headers["connection"]) == (int(status), "close")
        client.send(b"nonsense\r\n")
        assert client.is_gone()
        assert len(client.replies()) == 1

    @pytest.mark.parametrize("status", ["404", "405", "415", "403", "421"])
    def test_a_short_body_leaves_the_connection_of_use(self, world: World, status: str) -> None:
        client = world.connect()
        for _ in range(2):
            client.send(self.HEADS[status] + LENGTH + b"\r\n" + BODY)
        client.send(submit())
        assert [reply.status for reply in client.replies()] == [int(status), int(status), 201]

    def test_where_there_is_no_room_either(self, world: World) -> None:
        world.site.server.large_body_limit.enter("@127.0.0.1", world.site.server.large_body_limit.limit)
        client = world.connect()
        client.send(POST + HOST + b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
        (reply,) = client.replies()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "busy", "1")
        client.transport.hang_up()

    def test_no_body_is_not_asked_for(self, world: World) -> None:
        client = world.connect()
        client.send(
            b"POST /tasks/cancel?id=x HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n"
        )
        assert [reply.status for reply in client.replies()] == [404]

    def test_refusals_are_counted(self, world: World) -> None:
        client = world.connect()
        client.send(self.HEADS["421"] + b"Content-Length: 100000\r\n\r\n")
        client.transport.hang_up()
        assert {key: sum(one.counts) for key, one in world.metrics.http_s.items()} == {("/tasks/submit", 421): 1}


def test_close_among_other_options_is_honoured(world: World) -> None:
    for value in ("close, te", "TE,Close"):
        client = world.connect()
        client.request("GET", "/health", Connection=value)
        assert client.replies()[0].headers["connection"] == "close"
        assert client.has_ended()


def test_names_that_the_node_is_given() -> None:
    for direct in (False, True):
        world = World(fast_path=direct, host_names=frozenset({"localhost", "tq.example.org"}))
        assert world.post("/tasks/submit", BODY, Host="tq.example.org").status == 201
        assert world.post("/tasks/submit", BODY, Host="TQ.example.org:80").status == 201
        assert world.post("/tasks/submit", BODY, Host="example.org").status == 421
        world.close()
        world = World(fast_path=direct, host_names=None)
        assert world.post("/tasks/submit", BODY, Host="any.example").status == 201
        assert world.post("/tasks/submit", BODY, Host="a b").status == 400
        world.close()


def test_names_asked_for_are_not_kept_for_ever(world: World) -> None:
    for number in range(1_000):
        assert world.get("/health", Host=f"h{number}.example").status == 421
    assert len(world.site.routing.heads.hosts._verdicts) <= 256

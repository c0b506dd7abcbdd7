"""A thousand random byte strings at a real port, with the node serving on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from tests.support.memory_queue import MemoryQueue
from tq_node.api import ApiSettings, make_site
from tq_node.api.http.site import ApiSite
from tq_node.observe.metrics import Metrics

STRINGS = 1_000
STARTS = (
    b"",
    b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n",
    b"POST /tasks/batch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /tasks/submit HTTP/1.1\r\n",
    b"GET /",
    b"GET /tasks/list?",
    b"GET /tasks/status?id=",
    b"HEAD /",
    b'POST /tasks/submit HTTP/1.1\r\nContent-Length: 60\r\n\r\n{"type":"a","payload":',
)


@pytest.fixture
def port() -> Iterator[int]:
    from twisted.internet import reactor as untyped

    reactor: Any = untyped
    site = make_site(MemoryQueue(reactor), ApiSettings(), Metrics(), shutdown=lambda: None, reactor=reactor)
    listening = reactor.listenTCP(0, site, interface="127.0.0.1")
    yield listening.getHost().port
    pytest_twisted.blockon(Deferred.fromCoroutine(_closed(listening, site)))


async def _closed(listening: Any, site: ApiSite) -> None:
    await listening.stopListening()
    await site.close(0.5)


def throw(port: int, seed: int) -> None:
    """One random string, in one or two pieces; half of the clients don't wait for an answer."""
    dice = random.Random(seed)
    data = dice.choice(STARTS) + dice.randbytes(dice.choice((1, 20, 300, 5_000))) + dice.choice((b"", b"\r\n\r\n"))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.settimeout(0.02)
        cut = dice.randrange(len(data))
        try:
            client.sendall(data[:cut])
            client.sendall(data[cut:])
            if dice.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
                while client.recv(65_536):
                    pass
        except (OSError, TimeoutError):
            pass


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(request)
        return client.recv(65_536)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]  # pytest-twisted has no types
async def test_the_node_serves_on(port: int) -> None:
    def some(first: int) -> None:
        for seed in range(first, STRINGS, 4):
            throw(port, seed)

    await DeferredList([deferToThread(some, first) for first in range(4)], fireOnOneErrback=True)
    answer = await deferToThread(ask, port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    body = b'{"type":"a"}'
    submit = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert (await deferToThread(ask, port, submit)).startswith(b"HTTP/1.1 201 Created\r\n")

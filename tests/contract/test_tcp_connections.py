"""One suite over both kinds of TCP connection, Twisted's own and ``direct_sends``; the peer is a
bare socket."""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.wire_kinds import make_cluster_ca
from tq_node.direct_sends import DirectClient, DirectReactor, DirectSends, DirectServer

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture
TURNS_MAX = 5_000
LARGE = bytes(range(256)) * 40_000
"""10 MB, more than the system takes."""


class End(Protocol):
    """This side's protocol."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    @property
    def wire(self) -> Any:
        return self.transport

    @property
    def is_lost(self) -> bool:
        return self.lost is not None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


@implementer(IHalfCloseableProtocol)
class HalfClosing(End):
    has_write_ended = has_read_ended = False

    def readConnectionLost(self) -> None:
        self.has_read_ended = True

    def writeConnectionLost(self) -> None:
        self.has_write_ended = True


class Pair:
    """A connection of the reactor, and the bare socket at its other end."""

    def __init__(self, kind: str, side: str) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.is_direct = kind == "direct"
        self._endpoints: Any = DirectReactor(reactor) if self.is_direct else reactor
        self._side = side
        self.peer: socket.socket
        self._listening: Any = None

    async def opened(self, end: End) -> End:
        if self._side == "accepted":
            factory = Factory.forProtocol(lambda: end)
            self._listening = self._endpoints.listenTCP(0, factory, interface="127.0.0.1")
            self.peer = socket.create_connection(("127.0.0.1", self._listening.getHost().port))
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self._endpoints.connectTCP("127.0.0.1", server.getsockname()[1], ClientFactory.forProtocol(lambda: end))
                await self.until(lambda: select.select([server], [], [], 0)[0])
                self.peer = server.accept()[0]
        self.peer.setblocking(False)
        await self.until(lambda: end.transport is not None)
        assert isinstance(end.transport, DirectSends) is self.is_direct
        return end

    async def until(self, true: Callable[[], object]) -> None:
        for _ in range(TURNS_MAX):
            if true():
                return
            await deferLater(self.reactor, 0.001)
        pytest.fail("it never came to that")

    def read(self) -> bytes | None:
        """What has arrived at the peer; None: nothing but the end."""
        found = b""
        while True:
            try:
                data = self.peer.recv(1 << 20)
            except BlockingIOError:
                return found
            if not data:
                return found or None
            found += data

    async def read_all(self) -> bytes:
        """What arrives up to the end."""
        found: list[bytes] = []

        def has_ended() -> bool:
            data = self.read()
            found.append(data or b"")
            return data is None

        await self.until(has_ended)
        return b"".join(found)

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    async def closed(self) -> None:
        self.peer.close()
        if self._listening is not None:
            await self._listening.stopListening()


@async_fixture(
    params=[(kind, side) for kind in ("twisted", "direct") for side in ("accepted", "dialled")], ids="-".join
)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    made = Pair(*request.param)
    yield made
    await made.closed()


async def finish(pair: Pair, end: End) -> None:
    pair.peer.close()
    end.wire.abortConnection()
    await pair.until(lambda: end.lost)


@deferred
async def test_a_direct_connection_sends_within_write(pair: Pair) -> None:
    end = await pair.opened(End())
    end.wire.write(b"one ")
    end.wire.writeSequence([b"two ", b"", b"three"])
    end.wire.write(b"")
    at_once = pair.read()
    assert at_once == (b"one two three" if pair.is_direct else b"")
    assert (end.transport in pair.reactor.getWriters()) is not pair.is_direct
    await finish(pair, end)


@deferred
async def test_order_holds_whatever_the_system_takes(pair: Pair) -> None:
    end = await pair.opened(End())
    sizes = [1, 100, 300_000, 5, 70_000, 3_000_000, 1, 2, 900_000, 7]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    for piece in pieces[:5]:
        end.wire.write(piece)
    end.wire.writeSequence(pieces[5:8])
    assert end.transport in pair.reactor.getWriters(), "the system can't have taken all of it"
    end.wire.write(pieces[8])
    end.wire.write(pieces[9])
    end.wire.loseConnection()
    assert await pair.read_all() == b"".join(pieces)
    await pair.until(lambda: end.lost)
    assert end.lost is not None
    assert end.lost.check(ConnectionDone)


@deferred
async def test_what_is_no_bytes_is_refused_and_nothing_of_it_sent(pair: Pair) -> None:
    end = await pair.opened(End())
    for wrong in ("text", bytearray(b"x"), memoryview(b"x"), None):
        with pytest.raises(TypeError):
            end.wire.write(wrong)
    with pytest.raises(TypeError):
        end.wire.writeSequence([b"x", "text"])
    await deferLater(pair.reactor, 0.01)
    assert pair.read() == b""
    await finish(pair, end)


@implementer(IPushProducer)
class Pushing:
    """Writes 64 KiB after another, until it is paused or has written ``count`` of them."""

    def __init__(self, transport: Any, count: int = sys.maxsize) -> None:
        self._transport = transport
        self._left = count
        self.written = b""
        self.is_paused = self.is_stopped = False
        self.between: Callable[[], object] = lambda: None

    def resumeProducing(self) -> None:
        self.is_paused = False
        while self._left and not self.is_paused:
            self._left -= 1
            piece = bytes([self._left % 251]) * 65_536
            self.written += piece
            self._transport.write(piece)
            self.between()
        if not self._left:
            self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self.is_paused = True

    def stopProducing(self) -> None:
        self.is_stopped = True


@deferred
async def test_a_streaming_producer_is_paused_and_resumed(pair: Pair) -> None:
    end = await pair.opened(End())
    producer = Pushing(end.transport, 160)
    end.wire.registerProducer(producer, True)
    producer.resumeProducing()
    assert producer.is_paused
    end.wire.loseConnection()  # waits for the producer
    assert await pair.read_all() == producer.written
    assert len(producer.written) == 160 * 65_536
    await pair.until(lambda: end.lost)
    assert not producer.is_stopped


@deferred
async def test_a_producer_is_paused_though_the_peer_takes_all_at_once(pair: Pair) -> None:
    end = await pair.opened(End())
    producer = Pushing(end.transport, 1_000)
    producer.between = pair.read
    end.wire.registerProducer(producer, True)
    producer.resumeProducing()
    assert producer.is_paused
    assert len(producer.written) <= 131_072 + 3 * 65_536, "SEND_LIMIT, and what makes a buffer full"
    await finish(pair, end)
    assert producer.is_stopped


@implementer(IPullProducer)
class Pulled:
    def __init__(self, transport: Any, pieces: list[bytes]) -> None:
        self._transport = transport
        self._pieces = pieces
        self.depth = 0

    def resumeProducing(self) -> None:
        self.depth += 1
        assert self.depth == 1, "asked for more from within write"
        if self._pieces:
            self._transport.write(self._pieces.pop(0))
        else:
            self._transport.unregisterProducer()
            self._transport.loseConnection()
        self.depth -= 1

    def stopProducing(self) -> None: ...


@deferred
async def test_a_pull_producer_is_asked_until_it_is_done(pair: Pair) -> None:
    end = await pair.opened(End())
    pieces = [b"a" * 10, b"b" * 500_000, b"c", b"d" * 3_000_000, b"e"]
    expected = b"".join(pieces)
    end.wire.registerProducer(Pulled(end.transport, pieces), False)
    assert await pair.read_all() == expected
    await pair.until(lambda: end.lost)


@deferred
async def test_a_producer_that_writes_on_after_the_end_was_asked_for(pair: Pair) -> None:
    """Once resumed it writes a little and stays registered: that is sent, then the connection ends."""
    end = await pair.opened(End())

    @implementer(IPushProducer)
    class Last:
        is_stopped = False

        def pauseProducing(self) -> None: ...

        def resumeProducing(self) -> None:
            end.wire.write(b"last")

        def stopProducing(self) -> None:
            self.is_stopped = True

    end.wire.registerProducer(Last(), True)
    end.wire.write(LARGE)
    end.wire.loseConnection()
    assert await pair.read_all() == LARGE + b"last"
    await pair.until(lambda: end.lost)
    assert end.lost is not None
    assert end.lost.check(ConnectionDone)


@deferred
@pytest.mark.parametrize("unsent", [b"", LARGE])
async def test_half_close_sends_what_was_written_and_reads_on(pair: Pair, unsent: bytes) -> None:
    end = cast("HalfClosing", await pair.opened(HalfClosing()))
    end.wire.write(b"first")
    end.wire.write(unsent)
    end.wire.loseWriteConnection()
    end.wire.write(b"more") if unsent else None  # not ended yet, so it is sent as well
    assert await pair.read_all() == b"first" + unsent + (b"more" if unsent else b"")
    await pair.until(lambda: end.has_write_ended)
    end.wire.write(b"too late")
    pair.peer.send(b"still here")
    await pair.until(lambda: end.received == b"still here")
    pair.peer.close()
    await pair.until(lambda: end.has_read_ended)
    end.wire.loseConnection()
    await pair.until(lambda: end.lost)


@deferred
@pytest.mark.parametrize("unsent", [b"", LARGE])
async def test_abort_drops_what_is_unsent_and_sends_no_more(pair: Pair, unsent: bytes) -> None:
    end = await pair.opened(End())
    end.wire.write(unsent)
    pair.read()
    end.wire.abortConnection()
    end.wire.write(b"too late")
    assert not end.is_lost, "not from within"
    assert b"too late" not in (pair.read() or b"")
    await pair.until(lambda: end.lost)
    assert end.lost is not None
    assert end.lost.check(ConnectionAborted)
    end.wire.write(b"later still")
    with pytest.raises(ConnectionResetError):
        pair.peer.recv(1 << 24) and pair.peer.recv(1)


@deferred
async def test_a_reset_is_lost_in_a_later_turn(pair: Pair) -> None:
    end = await pair.opened(End())
    pair.reset()
    end.wire.write(b"one")
    end.wire.write(b"two")
    assert not end.is_lost, "not from within write"
    await pair.until(lambda: end.lost)
    assert end.lost is not None
    assert end.lost.check(ConnectionLost)
    assert not end.lost.check(ConnectionDone), "it did not end in order"


@deferred
async def test_what_came_before_a_reset_is_read_though_write_saw_it_first(pair: Pair) -> None:
    end = await pair.opened(HalfClosing())
    end.wire.write(b"a question that is not read")
    await pair.until(lambda: end.transport not in pair.reactor.getWriters())
    pair.peer.send(b"why not")
    pair.peer.close()  # with something unread: a reset
    end.wire.write(b"and more")
    await pair.until(lambda: end.lost)
    assert end.received == b"why not"
    assert end.lost is not None
    assert end.lost.check(ConnectionLost)


@deferred
async def test_the_peers_end_is_the_connections_end(pair: Pair) -> None:
    end = await pair.opened(End())
    end.wire.write(b"hello")
    await pair.until(pair.read)
    pair.peer.close()
    await pair.until(lambda: end.lost)
    assert end.lost is not None
    assert end.lost.check(ConnectionDone)
    end.wire.write(b"too late")  # nobody minds


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca") / "made"
    assert make_cluster_ca(folder, "a").returncode == 0
    return folder


@deferred
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest.mark.parametrize("kind", ["twisted", "direct"])
async def test_tls_that_starts_amid_a_connection(kind: str, authority: Path) -> None:
    """Both ends say a line in plain text, then the rest under TLS; no byte of it goes out before."""
    from twisted.internet import reactor

    endpoints: Any = DirectReactor(reactor) if kind == "direct" else reactor
    pem = b"".join((authority / f"a.{suffix}").read_bytes() for suffix in ("crt", "key"))
    certificate = PrivateCertificate.loadPEM(pem)
    accepted, dialled = End(), End()
    port = endpoints.listenTCP(0, Factory.forProtocol(lambda: accepted), interface="127.0.0.1")
    endpoints.connectTCP("127.0.0.1", port.getHost().port, ClientFactory.forProtocol(lambda: dialled))
    pair = Pair(kind, "dialled")
    await pair.until(lambda: accepted.transport and dialled.transport)
    for end in (accepted, dialled):
        end.wire.write(b"plain")
    await pair.until(lambda: accepted.received == dialled.received == b"plain")
    accepted.wire.startTLS(certificate.options())
    dialled.wire.startTLS(CertificateOptions(verify=False))
    for end in (accepted, dialled):
        end.wire.write(LARGE[:1_000_000])
        end.wire.writeSequence([b"the ", b"end"])
    await pair.until(lambda: accepted.received == dialled.received == b"plain" + LARGE[:1_000_000] + b"the end")
    dialled.wire.loseConnection()
    await pair.until(lambda: accepted.lost and dialled.lost)
    await port.stopListening()


@deferred
async def test_sockets_that_were_inherited_are_direct_too_and_unix_sockets_are_not(tmp_path: Path) -> None:
    from twisted.internet import reactor

    direct: Any = DirectReactor(reactor)
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        port = direct.adoptStreamPort(inherited.fileno(), socket.AF_INET, Factory.forProtocol(End))
    by_path = direct.listenUNIX(str(tmp_path / "socket"), Factory.forProtocol(End))
    assert port.transport is DirectServer
    assert not issubclass(by_path.transport, DirectSends)
    for one in (port, by_path):
        await one.stopListening()
    assert tcp.Port.transport is tcp.Server
    assert issubclass(DirectClient, tcp.Client)

"""HTTPS in memory: the real site and OpenSSL at both ends, a ``Clock`` and no sockets."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from OpenSSL import SSL
from twisted.internet.task import Clock

from tests.support.certificates import put, trusting
from tests.unit.tq_node.api.talk import Reply, Transport, World, replies_in
from tq_node.api.http.tls import HttpsFactory, read_context
from tq_node.reread_files import RereadFiles


class Https(World):
    """A site behind TLS; ``place`` holds its files."""

    def __init__(self, folder: Path, place: Path, *, asks_clients: bool = False) -> None:
        super().__init__()
        self.folder, self.place = folder, place
        self.authority = folder / "ca.crt" if asks_clients else None
        self.put("node-1")
        self.files = RereadFiles("--http-cert", [place / "tls.crt", place / "tls.key"], self.read)
        self.factory = HttpsFactory(self.files, self.site)

    def put(self, name: str) -> None:
        put(self.folder, name, self.place)

    def read(self) -> SSL.Context:
        return read_context(self.place / "tls.crt", self.place / "tls.key", self.authority)

    def close(self) -> None:
        for channel in list(self.site.server.connections.open):
            channel.transport.hang_up()  # type: ignore[attr-defined]  # an ApiChannel has one
        self.clock.advance(0)
        super().close()

    def dial(self, context: ssl.SSLContext | None = None) -> Client:
        """A client who has said hello, and got no answer yet."""
        return Client(self, context or trusting(self.folder))

    def greeted(self, context: ssl.SSLContext | None = None) -> Client:
        client = self.dial(context)
        client.shake_hands()
        return client


class Socket(Transport):
    """As a socket's, its end is told in a later turn."""

    def __init__(self, world: Https) -> None:
        super().__init__(peerAddress=world.peer)
        self._clock = world.clock

    def hang_up(self) -> None:
        self._clock.callLater(0, super().hang_up)


def turn(clock: Clock) -> None:
    """One turn of a reactor: what is asked for in it comes in the next."""
    for call in [call for call in clock.calls if call.getTime() <= clock.seconds()]:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)


class Client:
    def __init__(self, world: Https, context: ssl.SSLContext) -> None:
        self.world = world
        protocol = world.factory.buildProtocol(world.peer)
        assert protocol is not None
        self.protocol = protocol
        self.transport = Socket(world)
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def flush(self) -> None:
        said = self.outgoing.read()
        if said and not self.transport.lost:
            self.protocol.dataReceived(said)

    def fetch(self) -> bool:
        """Take what the server has sent; False: nothing."""
        value = self.transport.value()
        self.transport.clear()
        self.incoming.write(value)
        return bool(value)

    def hello(self) -> None:
        """Begin the handshake."""
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.flush()

    def shake_hands(self) -> None:
        for _ in range(10):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.world.clock.advance(0)
                self.fetch()
            else:
                self.flush()
                self.world.clock.advance(0)
                return
        raise AssertionError("no end of the handshake")

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def received(self) -> bytes:
        self.fetch()
        parts = []
        while True:
            try:
                part = self.tls.read(65_536)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            if not part:
                self.has_ended = True
                break
            parts.append(part)
        return b"".join(parts)

    has_ended = False
    """The server has said that nothing follows."""

    def replies(self) -> list[Reply]:
        return replies_in(self.received())

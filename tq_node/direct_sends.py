"""TCP connections that send inside ``write`` what the system takes at once.

Twisted's own keep it until the reactor finds the socket writable: a turn later, and after two more
calls of the kernel. (``docs/decisions/0022-direct-sends.md``.)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet import main, tcp
from twisted.internet.interfaces import IConnector, IListeningPort
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy


class DirectSends(tcp.Connection):
    """Mixed into a connection: ``write`` sends at once while nothing waits to be sent, and leaves
    the rest, or an error, to the reactor.

    Through the reactor goes all that is written under ``startTLS``, by a pull producer, and once
    the end was asked for: what follows them is decided there, when the buffer is empty."""

    _direct_bytes_max = tcp.Connection.SEND_LIMIT
    """0 once the end was asked for."""
    _direct_bytes = tcp.Connection.SEND_LIMIT
    """What may still be sent directly before the reactor has its turn: however fast the peer reads,
    a producer is paused some time. 0 while something waits to be sent."""
    _has_failed = False
    """The system told ``write`` that the connection is broken, and says so only once: to the
    reactor what is left to be read would look like an end in order."""

    def write(self, data: bytes) -> None:
        if (
            self._direct_bytes > 0
            and self.connected
            and not self.TLS
            and type(data) is bytes
            and (self.producer is None or self.streamingProducer)
        ):
            sent = self.writeSomeData(data)
            if isinstance(sent, int):
                self._direct_bytes -= sent
                if sent == len(data):
                    return
                data = data[sent:]
            else:
                self._has_failed = True
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def startWriting(self) -> None:
        self._direct_bytes = 0
        super().startWriting()

    def stopWriting(self) -> None:
        self._direct_bytes = self._direct_bytes_max
        super().stopWriting()

    def loseConnection(self) -> None:
        self._end_direct()
        super().loseConnection()

    def loseWriteConnection(self) -> None:
        self._end_direct()
        super().loseWriteConnection()

    def abortConnection(self) -> None:
        self._end_direct()
        super().abortConnection()

    def readConnectionLost(self, reason: Failure) -> None:
        if self._has_failed:
            self.connectionLost(Failure(main.CONNECTION_LOST))
        else:
            super().readConnectionLost(reason)

    def _end_direct(self) -> None:
        self._direct_bytes_max = self._direct_bytes = 0


class DirectServer(DirectSends, tcp.Server):
    """A connection that was accepted."""


class DirectClient(DirectSends, tcp.Client):
    """A connection that was dialled."""


class DirectConnector(tcp.Connector):
    def _makeTransport(self) -> tcp.Client:
        return DirectClient(self.host, self.port, self.bindAddress, self, self.reactor)


class DirectReactor:
    """A reactor for endpoints: TCP connections are ``DirectSends``, Unix sockets as they were."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, *arguments: Any, **named: Any) -> IListeningPort:
        return _direct(self._reactor.listenTCP(*arguments, **named))

    def adoptStreamPort(self, *arguments: Any) -> IListeningPort:
        return _direct(self._reactor.adoptStreamPort(*arguments))

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30.0, bindAddress: Any = None
    ) -> IConnector:
        connector = DirectConnector(host, port, factory, timeout, bindAddress, self._reactor)
        connector.connect()
        return connector


def _direct(port: IListeningPort) -> IListeningPort:
    if type(port) is tcp.Port:  # a Unix socket's is a subclass
        port.transport = DirectServer
    return port

"""Whose the other end of a loopback connection is, with real sockets and a process of another user."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tq_node.direct_sends import DirectReactor
from tq_node.socket_owner import is_own_users, owner_of

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel says it on Linux only")
Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
the_reactor: Any = reactor
NOBODY = 65_534
DIAL = (
    "import encodings.idna, os, socket, sys; os.setuid({uid}); "
    "s = socket.create_connection(({host!r}, {port})); sys.stdin.read()"
)


class Transport:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def getPeer(self) -> Address:
        return Address(*self._connection.getpeername()[:2])

    def getHost(self) -> Address:
        return Address(*self._connection.getsockname()[:2])


class Address:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port


@pytest.fixture(params=["127.0.0.1", "::1", "::"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        with socket.socket(family) as port:
            if family is socket.AF_INET6:
                port.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, request.param == "::1")
            port.bind((request.param, 0))
            port.listen()
            port.settimeout(20)
            yield port
    except OSError as why:
        if family is socket.AF_INET6:
            pytest.skip(f"no IPv6 here: {why}")
        raise


def address_of(port: socket.socket) -> tuple[str, int]:
    host, number = port.getsockname()[:2]
    return ("127.0.0.1" if host == "::" else host), number


def test_ones_own_connection(listening: socket.socket) -> None:
    with socket.create_connection(address_of(listening)) as dialled, listening.accept()[0] as accepted:
        assert is_own_users(Transport(accepted)) is True
        assert owner_of(dialled.getsockname()[:2], dialled.getpeername()[:2]) == os.geteuid()
        dialled.shutdown(socket.SHUT_WR)
        assert is_own_users(Transport(accepted)) is False, "half closed it may be shown as anybody's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_that_of_another_user(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = address_of(listening)
    for uid, expected in ((NOBODY, False), (0, True)):
        code = DIAL.format(uid=uid, host=host, port=port)
        with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as other:
            with listening.accept()[0] as accepted:
                assert is_own_users(Transport(accepted)) is expected
                monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
                assert is_own_users(Transport(accepted)) is True, "root may, and so may the node's own user"
                monkeypatch.undo()
            other.communicate()


# --- Unix sockets ---
DIAL_UNIX = (
    "import os, socket, sys; os.setuid({uid}); s = socket.socket(socket.AF_UNIX); s.connect({path!r}); sys.stdin.read()"
)


class Accepting(Factory):
    """Takes connections of a Unix socket, as the HTTP side does."""

    noisy = False

    def __init__(self) -> None:
        self.accepted: Deferred[Any] = Deferred()

    def buildProtocol(self, addr: object) -> Protocol:
        made = Protocol()
        made.connectionMade = lambda: self.accepted.callback(made.transport)  # type: ignore[method-assign]
        return made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize(("uid", "expected"), [(NOBODY, False), (0, True)])
@deferred
async def test_a_unix_socket_tells_who_dialled_it(uid: int, expected: bool) -> None:
    """Twisted makes it for everybody (0666): the folder alone, or this, keeps others out."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, factory = f"{folder}/http", Accepting()
        port = DirectReactor(the_reactor).listenUNIX(path, factory, mode=0o666)
        code = DIAL_UNIX.format(uid=uid, path=path)
        with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as other:
            transport = await factory.accepted.addTimeout(20, the_reactor)
            assert is_own_users(transport) is expected
            transport.abortConnection() if hasattr(transport, "abortConnection") else transport.loseConnection()
            assert other.stdin is not None
            other.stdin.close()
        await port.stopListening()


def test_what_is_no_connection_of_this_machine() -> None:
    assert owner_of(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert owner_of(("not an address", 1), ("127.0.0.1", 2)) is None

    class Unix:
        def getPeer(self) -> object:
            return object()

        getHost = getPeer

    assert is_own_users(Unix()) is None

"""A TCP proxy for tests that hurts one directed link at a time. It runs in a thread of its own, so that it works for tests
that block (real processes) as for tests inside the reactor.

    with LinkProxy(target_port) as proxy:                  # dial 127.0.0.1:proxy.port instead of the target
        proxy.forward.blackhole()                          # what the dialler says no longer arrives
        proxy.backward.delay(0.2)                          # what the target says arrives late
        proxy.heal()

``forward`` carries bytes from the dialler to the target, ``backward`` the other way. For the six directed links of three nodes:
one proxy for each ordered pair of (dialler, target). To cut *messages from A to B* whoever dialled, cut ``forward`` of A's proxy
to B and ``backward`` of B's proxy to A; ``Links`` does that. A proxy can't refuse for a target that is dead (it has accepted by
then): say ``refuse`` where a refused port is wanted (R5a).
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 65_536
HELD_BYTES_MAX = 4 * 1024 * 1024
"""A direction that holds more stops reading, as a slow network would."""
LOOPBACK = "127.0.0.1"
PROJECT = Path(__file__).resolve().parents[2]


class Mode(enum.Enum):
    PASS = "pass"
    BLACKHOLE = "blackhole"
    """Nothing arrives now; after healing all of it does, late: what TCP does over a network that was cut."""
    DROP = "drop"
    """Bytes are thrown away. A connection that lost some is broken by healing: its stream has a hole."""


class Direction:
    """One direction of every connection of a proxy. Safe to call from any thread; takes effect at once."""

    def __init__(self, proxy: LinkProxy) -> None:
        self._proxy = proxy
        self.mode = Mode.PASS
        self.delay_s = 0.0
        self.carried_bytes = 0

    def blackhole(self) -> None:
        self._set(Mode.BLACKHOLE)

    def drop(self) -> None:
        self._set(Mode.DROP)

    def delay(self, seconds: float) -> None:
        self.delay_s = seconds
        self._set(Mode.PASS)

    def heal(self) -> None:
        self.delay_s = 0.0
        self._set(Mode.PASS)

    def _set(self, mode: Mode) -> None:
        self.mode = mode
        self._proxy._wake()


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.held: deque[tuple[float, bytes]] = deque()
        """(when it may go, bytes); empty bytes: the source has ended."""
        self.held_bytes = 0
        self.has_hole = False
        self.is_ended = False

    @property
    def wants_input(self) -> bool:
        return not self.is_ended and self.held_bytes < HELD_BYTES_MAX

    def due_s(self, now_s: float) -> float | None:
        """In how many seconds something may go; None: nothing, for now."""
        if not self.held or self.direction.mode is not Mode.PASS:
            return None
        return max(0.0, self.held[0][0] - now_s)

    def take(self, now_s: float) -> None:
        """:raises OSError: the connection is broken."""
        try:
            data = self.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.is_ended = True
        elif self.direction.mode is Mode.DROP:
            self.has_hole = True
            return
        self.held.append((now_s + self.direction.delay_s, data))
        self.held_bytes += len(data)

    def give(self, now_s: float) -> None:
        """:raises OSError: the connection is broken."""
        if self.has_hole and self.direction.mode is Mode.PASS:
            raise ConnectionResetError("bytes are missing")
        while self.due_s(now_s) == 0.0:
            at_s, data = self.held.popleft()
            if not data:
                self.sink.shutdown(socket.SHUT_WR)
                continue
            self.held_bytes -= len(data)
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.direction.carried_bytes += sent
            if sent < len(data):
                self.held.appendleft((at_s, data[sent:]))
                self.held_bytes += len(data) - sent
                return


class _Connection:
    def __init__(self, dialler: socket.socket, target: socket.socket, proxy: LinkProxy) -> None:
        self.sockets = (dialler, target)
        self.pipes = (_Pipe(dialler, target, proxy.forward), _Pipe(target, dialler, proxy.backward))

    def close(self) -> None:
        for end in self.sockets:
            with contextlib.suppress(OSError):  # a reset, not an end in order: the other side sees that it broke
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()


class LinkProxy:
    """:param target: the port on loopback that is dialled for each connection."""

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.forward = Direction(self)
        self.backward = Direction(self)
        self._listener: socket.socket | None = self._bound(port)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._orders: deque[Callable[[], None]] = deque()
        self._is_running = True
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    # --- any thread ---
    def heal(self) -> None:
        self.forward.heal()
        self.backward.heal()

    def break_all(self) -> None:
        """Reset every connection that there is."""
        self._do(self._close_connections)

    def refuse(self) -> None:
        """The port refuses, and connections are reset: the node behind it is dead, to all appearances."""
        self._do(self._refuse)

    def accept_again(self) -> None:
        self._do(self._accept_again)

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        self._is_running = False
        self._wake()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()

        def carried_out() -> None:
            order()
            done.set()

        self._orders.append(carried_out)
        self._wake()
        assert done.wait(10), "the proxy's thread is gone"

    # --- the proxy's thread ---
    def _bound(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(256)
        listener.setblocking(False)
        return listener

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._close_connections()

    def _accept_again(self) -> None:
        if self._listener is None:
            self._listener = self._bound(self.port)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _close_connections(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def _run(self) -> None:
        try:
            while self._is_running:
                self._round()
        finally:
            self._refuse()
            self._selector.close()
            self._waker.close()
            self._woken.close()

    def _round(self) -> None:
        now_s = time.monotonic()
        dues = [due for c in self._connections for pipe in c.pipes if (due := pipe.due_s(now_s)) is not None]
        self._watch()
        self._selector.select(min(dues, default=1.0))
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._orders:
            self._orders.popleft()()
        self._accept()
        now_s = time.monotonic()
        for connection in list(self._connections):
            try:
                for pipe in connection.pipes:
                    if pipe.wants_input:
                        pipe.take(now_s)
                    pipe.give(now_s)
            except OSError:
                self._end(connection)
            else:
                if all(pipe.is_ended and not pipe.held for pipe in connection.pipes):
                    self._end(connection)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._selector.unregister(key.fileobj)

    def _watch(self) -> None:
        """What each socket is waited for, this round."""
        now_s = time.monotonic()
        for connection in self._connections:
            for pipe, other in (connection.pipes, connection.pipes[::-1]):
                events = selectors.EVENT_READ if pipe.wants_input else 0
                if other.due_s(now_s) == 0.0:
                    events |= selectors.EVENT_WRITE
                if events:
                    self._selector.register(pipe.source, events, connection)

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                dialler, _ = self._listener.accept()
            except BlockingIOError:
                return
            try:
                target = socket.create_connection((LOOPBACK, self.target), 5)
            except OSError:  # a real network would refuse at once; here the dialler sees a reset a moment later
                dialler.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                dialler.close()
                continue
            for end in (dialler, target):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(_Connection(dialler, target, self))

    def _end(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        connection.close()


class Links:
    """All directed links between nodes: a proxy for each ordered pair.

    :param ports: of each node's name, the port on loopback where it listens.
    """

    def __init__(self, ports: dict[str, int]) -> None:
        self.proxies = {
            (dialler, target): LinkProxy(ports[target]) for dialler in ports for target in ports if dialler != target
        }

    def port(self, dialler: str, target: str) -> int:
        """Where ``dialler`` must dial to reach ``target``."""
        return self.proxies[dialler, target].port

    def cut(self, source: str, sink: str, how: Callable[[Direction], Any] = Direction.blackhole) -> None:
        """What ``source`` says no longer reaches ``sink``, whoever dialled."""
        how(self.proxies[source, sink].forward)
        how(self.proxies[sink, source].backward)

    def isolate(self, node: str, others: Iterable[str]) -> None:
        for other in others:
            self.cut(node, other)
            self.cut(other, node)

    def heal(self) -> None:
        for proxy in self.proxies.values():
            proxy.heal()

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


# --- processes that dial a proxy without knowing of it ---
_SITE = '''"""Dial another port of loopback instead of some: how tests put a proxy on one directed link between two processes."""
import os, runpy, socket
if "TESTS_AHEAD" in os.environ:  # Python imports one such module only
    runpy.run_path(os.path.join(os.environ["TESTS_AHEAD"], "sitecustomize.py"))
_PORTS = dict(pair.split("=") for pair in os.environ.get("TESTS_REDIRECT", "").split(",") if pair)
if _PORTS:
    _connect_ex = socket.socket.connect_ex
    def connect_ex(self, address):
        if isinstance(address, tuple) and str(address[1]) in _PORTS:
            address = (address[0], int(_PORTS[str(address[1])]), *address[2:])
        return _connect_ex(self, address)
    socket.socket.connect_ex = connect_ex
'''


def redirection(directory: Path) -> Callable[[Mapping[int, int]], dict[str, str]]:
    """From (port that is meant: port that is dialled) to the environment of a Python process for which that holds.

    By a ``sitecustomize`` in ``directory``: Twisted dials with ``connect_ex``. The process itself need not offer anything for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(_SITE)

    def environment(ports: Mapping[int, int]) -> dict[str, str]:
        redirects = ",".join(f"{meant}={dialled}" for meant, dialled in ports.items())
        return {"PYTHONPATH": f"{directory}:{PROJECT}", "TESTS_REDIRECT": redirects}

    return environment

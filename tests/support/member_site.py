"""A member's HTTP side as far as a joiner sees it: what it answers is up to the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

Answer = tuple[int, bytes] | int
"""Status and body, or ``NOT_DONE_YET``."""
the_reactor: Any = reactor


def problem(status: int, code: str, detail: str = "") -> Answer:
    return status, json.dumps({"status": status, "code": code, "detail": detail or code}).encode()


def cluster_answer(cluster_id: str, nodes: dict[str, str], leader: str | None = None) -> Answer:
    """:param nodes: peer address by name."""
    listed = [
        {"id": name, "name": name, "ip": "", "status": "active", "voter": True, "services": {"http": "", "peer": peer}}
        for name, peer in nodes.items()
    ]
    return 200, json.dumps({"cluster": {"id": cluster_id, "name": "", "nodes": listed, "leader": leader}}).encode()


def join_answer(cluster_id: str, secret: bytes, peer: str) -> Answer:
    said = {"success": True, "cluster_id": cluster_id, "secret": secret.hex(), "peer": peer}
    return 200, json.dumps(said).encode()


class _Everything(Resource):
    isLeaf = True

    def __init__(self, site: MemberSite) -> None:
        super().__init__()
        self._site = site

    def render(self, request: Request) -> bytes | int:
        asked = f"{request.method.decode()} {request.path.decode()}"
        self._site.asked.append(asked)
        self._site.shown.append(request.getHeader("authorization") or "")
        for name, value in self._site.headers.get(asked, {}).items():
            request.setHeader(name, value)
        answer = self._site.answers.get(asked, lambda: problem(404, "not_found"))()
        if isinstance(answer, int):
            return NOT_DONE_YET
        request.setResponseCode(answer[0])
        request.setHeader(b"content-type", b"application/json")
        return answer[1]


class MemberSite:
    """Listens on loopback until ``stop``. ``answers``: by method and path, as in ``GET /cluster``."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        """Of the answers, as ``answers``."""
        self.asked: list[str] = []
        self.shown: list[str] = []
        """What ``Authorization`` said, request by request."""
        self._open = WrappingFactory(Site(_Everything(self)))
        self._open.noisy = False
        self._port: IListeningPort = the_reactor.listenTCP(0, self._open, interface="127.0.0.1")

    @property
    def port(self) -> int:
        port: int = self._port.getHost().port  # type: ignore[attr-defined]
        return port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open_connections(self) -> int:
        return len(self._open.protocols)

    async def stop(self) -> None:
        for connection in list(self._open.protocols):
            connection.abortConnection()
        stopping: Any = self._port.stopListening()
        await stopping

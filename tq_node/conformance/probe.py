"""What a case speaks to the server with: as a worker, a submitter and an operator."""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

Json = dict[str, Any]
Claim = dict[str, Any]
ANSWER_S = 30.0
"""So long an answer may take, besides what the request lets it wait."""
SOON_S = 20.0
"""Within this a thing happens that should happen at once; a busy machine is no failure."""
LOOK_S = 0.05
ANSWER_BYTES_MAX = 64 * 1024 * 1024


class Unanswered(Exception):
    """The server gave no answer that can be judged: one line for a person."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unanswered(f"status {self.status} with a body that is no JSON: {self.body[:100]!r}") from None


class Server:
    """Where the worker API is: addresses of one cluster, and how they are spoken to.

    :param addresses: ``HOST:PORT``, ``http://…`` or ``https://…``.
    :raises ValueError: one of them is none."""

    def __init__(self, addresses: Sequence[str], token: str | None = None, ca: str | None = None) -> None:
        self.places = [_place(address) for address in addresses]
        self.token = token
        self._tls = ssl.create_default_context(cafile=ca) if any(secure for secure, _, _ in self.places) else None

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        node: int = 0,
        wait_s: float = 0.0,
        token: str | None = None,
    ) -> Answer:
        """:param node: which of the addresses, round and round.
        :raises Unanswered: there was no whole answer."""
        secure, host, port = self.places[node % len(self.places)]
        within_s = ANSWER_S + wait_s
        connection = (
            http.client.HTTPSConnection(host, port, timeout=within_s, context=self._tls)
            if secure
            else http.client.HTTPConnection(host, port, timeout=within_s)
        )
        headers = {} if body is None else {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_BYTES_MAX)
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)
        except (OSError, http.client.HTTPException) as why:
            raise Unanswered(f"{method} {path} at {host}:{port}: {str(why) or type(why).__name__}") from None
        finally:
            connection.close()


class Probe:
    """For one case: a task type, a queue and workers that no other has."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.type = self.queue = name
        self.worker = f"{name}-w"
        self._number = itertools.count(1)
        self._tasks: list[str] = []

    # --- plain requests ---
    def post(self, path: str, body: object = None, *, node: int = 0, wait_s: float = 0.0) -> Answer:
        """A request with this body as JSON; bytes go as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        return self.server.call("POST", path, content, node=node, wait_s=wait_s, token=self.server.token)

    def done(self, path: str, body: object = None, *, node: int = 0, wait_s: float = 0.0) -> Any:
        """The same, of one that must be answered 200, 201 or 202; raises ``Unanswered``."""
        answer = self.post(path, body, node=node, wait_s=wait_s)
        if answer.status not in (200, 201, 202):
            raise Unanswered(f"POST {path} is answered {answer.status}: {answer.body[:300].decode(errors='replace')}")
        return answer.json

    # --- as a submitter and an operator ---
    def submit(self, payload: object = None, **fields: object) -> str:
        """A task of this case's type and queue; returns its id."""
        body = {"type": self.type, "queue": self.queue, "payload": payload, **fields}
        task_id = str(self.done("/tasks/submit", body)["task_id"])
        self._tasks.append(task_id)
        return task_id

    def status(self, task_id: str, wait_s: float = 0.0) -> Json:
        """A task as ``/tasks/status`` shows it."""
        path = f"/tasks/status?id={quote(task_id)}&wait={wait_s}"
        answer = self.server.call("GET", path, None, wait_s=wait_s, token=self.server.token)
        if answer.status != 200:
            raise Unanswered(f"GET {path} is answered {answer.status}: {answer.body[:300].decode(errors='replace')}")
        shown: Json = answer.json
        return shown

    def cancel(self, task_id: str) -> None:
        self.done(f"/tasks/cancel?id={quote(task_id)}")

    def order(self, what: str, worker: str = "") -> None:
        """``quiet``, ``stop`` or ``resume`` for a worker."""
        self.done(f"/workers/{what}?worker={quote(worker or self.worker)}")

    # --- as a worker ---
    def fresh_id(self) -> str:
        """A claim id that was not used yet."""
        return f"{self.type}-{next(self._number)}"

    def ask(self, *, node: int = 0, **fields: object) -> Json:
        """One request for work of this case's type, that does not wait; the whole answer."""
        body: Json = {"worker": self.worker, "types": [self.type], "wait": 0, "lease": 30} | fields
        answer: Json = self.done("/work/claim", body, node=node, wait_s=float(body["wait"]))
        return answer

    def claim(self, count: int = 1, *, node: int = 0, **fields: object) -> list[Claim]:
        """So many claims, by as many requests as it takes; raises ``Unanswered`` if they don't
        come."""
        claims: list[Claim] = []
        end_s = time.monotonic() + SOON_S
        while len(claims) < count and time.monotonic() < end_s:
            asked = {"limit": count - len(claims), "wait": 1} | fields
            claims += self.ask(node=node, **asked)["claims"]
        if len(claims) < count:
            raise Unanswered(f"{len(claims)} of {count} tasks were given within {SOON_S:g} s")
        return claims

    def extend(self, claims: Sequence[Claim], *, node: int = 0, worker: str = "", **said: object) -> list[Json]:
        """The results of extending these."""
        body = {"worker": worker or self.worker, "claims": [_named(one) | said for one in claims]}
        return list(self.done("/work/extend", body, node=node)["results"])

    def finish(self, claims: Sequence[Claim], *, node: int = 0, worker: str = "", **how: object) -> list[Json]:
        """The results of ending these; completed with null if nothing else is said."""
        ends = [_named(one) | ({"outcome": "completed"} | how) for one in claims]
        return list(self.done("/work/finish", {"worker": worker or self.worker, "claims": ends}, node=node)["results"])

    # --- time ---
    def until(self, holds: Callable[[], object], what: str, within_s: float = SOON_S) -> None:
        """Look again and again; raises ``Unanswered`` if it does not come to hold."""
        end_s = time.monotonic() + within_s
        while not holds():
            if time.monotonic() >= end_s:
                raise Unanswered(f"{what}: not within {within_s:g} s")
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Cancel what has not ended, so that nothing of the case is left waiting."""
        for task_id in self._tasks:
            self.post(f"/tasks/cancel?id={quote(task_id)}")


class Waiting:
    """A request for work that waits, beside what the case does meanwhile."""

    def __init__(self, probe: Probe, *, node: int = 0, wait: float = 20, **fields: object) -> None:
        self._answer: Json | None = None
        self._why: Exception | None = None
        self.took_s = 0.0
        self._fields: Json = {"wait": wait, **fields}
        self._thread = threading.Thread(target=self._ask, args=(probe, node), daemon=True)
        self._thread.start()

    def _ask(self, probe: Probe, node: int) -> None:
        began_s = time.monotonic()
        try:
            self._answer = probe.ask(node=node, **self._fields)
        except Unanswered as why:
            self._why = why
        self.took_s = time.monotonic() - began_s

    @property
    def is_answered(self) -> bool:
        return not self._thread.is_alive()

    def answer(self) -> Json:
        """Once it has come; raises ``Unanswered``."""
        self._thread.join(ANSWER_S + float(self._fields["wait"]))
        if self._answer is None:
            raise self._why or Unanswered("a claim that waits is not answered")
        return self._answer


def _named(claim: Claim) -> Json:
    return {"task_id": claim["task_id"], "token": claim["token"]}


def _place(address: str) -> tuple[bool, str, int]:
    split = urlsplit(address if "://" in address else f"http://{address}")
    if split.scheme not in ("http", "https") or not split.hostname or split.path.strip("/") or split.query:
        raise ValueError(f"{address!r} is no address: HOST:PORT or https://HOST:PORT")
    secure = split.scheme == "https"
    return secure, split.hostname, split.port or (443 if secure else 8080)

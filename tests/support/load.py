"""Clients that load a cluster and write down all they asked and heard (``tests.support.history``)."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tests.support.history import NEVER, Call, History, outcome_of

TIMEOUT_S = 1.0
AGAIN_S = 0.025
KINDS = ("noop", "noop", "work-async", "flaky-async")
TASKS_MAX = 4_000
"""Of one load, over all its clients: what is checked at the end stays cheap."""


class Client:
    """One caller at a time, at any node; a connection to each is kept.

    :param ports: HTTP ports by the nodes' names.
    """

    def __init__(self, name: str, ports: Mapping[str, int], history: History, timeout_s: float = TIMEOUT_S) -> None:
        self.name = name
        self.ports = dict(ports)
        self.history = history
        self.timeout_s = timeout_s
        self._connections: dict[str, http.client.HTTPConnection] = {}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def keep(self, nodes: Collection[str]) -> None:
        """Hang up on all others: who comes back under such a name is somebody else."""
        for node in [node for node in self._connections if node not in nodes]:
            self._connections.pop(node).close()

    def submit(self, node: str, task_id: str, **fields: Any) -> Call:
        body = json.dumps({"id": task_id, **fields}).encode()
        return self._call("submit", node, task_id, "POST", "/tasks/submit", body)

    def cancel(self, node: str, task_id: str) -> Call:
        return self._call("cancel", node, task_id, "POST", f"/tasks/cancel?id={task_id}")

    def retry(self, node: str, task_id: str) -> Call:
        return self._call("retry", node, task_id, "POST", f"/tasks/retry?id={task_id}")

    def status(self, node: str, task_id: str) -> Call:
        return self._call("status", node, task_id, "GET", f"/tasks/status?id={task_id}")

    def local(self, node: str, task_id: str) -> Call:
        return self._call("local", node, task_id, "GET", f"/tasks/status?id={task_id}&consistency=local")

    def batch(self, node: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results, one a task; none where the call failed as a whole. It is not written down: who calls knows each
        task's fate."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[node], timeout=self.timeout_s)
        try:
            connection.request("POST", "/tasks/batch", json.dumps({"tasks": tasks}).encode())
            results: list[dict[str, Any]] = json.loads(connection.getresponse().read()).get("results", [])
        except (OSError, http.client.HTTPException, ValueError):
            return []
        finally:
            connection.close()
        return results

    def _call(self, kind: str, node: str, task_id: str, method: str, path: str, body: bytes | None = None) -> Call:
        call = self.history.add(Call(kind, task_id, time.monotonic(), self.name, node))
        connection = self._connections.pop(node, None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports[node], timeout=self.timeout_s)
            try:
                connection.connect()
            except OSError as why:
                connection.close()
                # Nothing has left.
                call.outcome, call.code, call.ended_s = "refused", type(why).__name__, time.monotonic()
                return call
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as why:
            connection.close()
            call.code = type(why).__name__
            return call
        if response.will_close:
            connection.close()
        else:
            self._connections[node] = connection
        call.http, call.code = response.status, answer.get("code", "")
        call.retry_after = response.getheader("Retry-After") is not None
        call.status, call.version = answer.get("status"), answer.get("version")
        if response.status >= 300:
            call.status = None  # a problem's is a number
        outcome = outcome_of(kind, call.http, call.code)
        if outcome != "unknown":
            call.ended_s = time.monotonic()
        call.outcome = outcome  # last: others look at it
        return call


class _Caller(threading.Thread):
    def __init__(self, load: Load, number: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.load = load
        self.client = Client(f"c{number}", load.ports, load.history, load.timeout_s)
        self.random = random.Random(f"{load.seed}-{number}")
        self.serial = itertools.count()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.load.over.is_set():
                self._one()
                self.load.over.wait(self.random.uniform(0, 2 * self.load.pause_s))
        except BaseException as why:
            self.error = why
        finally:
            self.client.close()

    def _one(self) -> None:
        rolls, known = self.random, self.load.known
        roll = rolls.random()
        if (roll < 0.5 or not known) and len(self.load.submitted) < self.load.tasks_max:
            self._submit()
        elif known:
            task_id = known[rolls.randrange(len(known))]  # a choice of a tuple would see others append
            node = self._node()
            if roll < 0.8:
                self.client.status(node, task_id)
            elif roll < 0.84:
                self.client.local(node, task_id)
            elif roll < 0.88:
                self.client.submit(node, task_id, **self.load.submitted[task_id])
            elif roll < 0.95:
                self.client.cancel(node, task_id)
            else:
                self.client.retry(node, task_id)

    def _node(self) -> str:
        ports = self.load.ports  # read once: another dict may take its place
        self.client.keep(ports)
        node = self.random.choice(tuple(ports))
        self.client.ports[node] = ports[node]
        return node

    def _submit(self) -> None:
        """The same id again, at any node, until it is known to be in."""
        task_id = f"{self.load.prefix}-{self.client.name}-{next(self.serial)}"
        fields: dict[str, Any] = {"type": self.random.choice(self.load.kinds), "payload": 0.02}
        if self.random.random() < 0.3:
            fields["delay"] = round(self.random.uniform(0.2, 2.0), 3)
        self.load.submitted[task_id] = fields
        while True:
            call = self.client.submit(self._node(), task_id, **fields)
            if call.outcome == "ok":
                self.load.known.append(task_id)
                return
            if self.load.over.is_set() or self.random.random() < 0.02:
                return  # some are given up: what became of them shows at the end
            time.sleep(AGAIN_S)


class Load:
    """So many clients, until ``end``. ``known``: ids that were acknowledged of late, which others ask for.

    ``ports`` may be replaced meanwhile: by those of nodes that came, without those of nodes that are about to go.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        *,
        clients: int = 4,
        pause_s: float = 0.01,
        seed: str = "",
        prefix: str = "own",
        history: History | None = None,
        kinds: Sequence[str] = KINDS,
        timeout_s: float = TIMEOUT_S,
        tasks_max: int = TASKS_MAX,
    ) -> None:
        self.ports = dict(ports)
        self.pause_s, self.seed, self.prefix = pause_s, seed, prefix
        self.kinds, self.timeout_s, self.tasks_max = tuple(kinds), timeout_s, tasks_max
        self.history = history or History()
        self.submitted: dict[str, dict[str, Any]] = {}
        self.known: deque[str] = deque(maxlen=60)
        self.over = threading.Event()
        self._callers = [_Caller(self, number) for number in range(clients)]

    def start(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def end(self) -> History:
        self.over.set()
        for caller in self._callers:
            caller.join(30 + self.timeout_s)
            assert not caller.is_alive(), f"{caller} hangs"
            if caller.error is not None:
                raise caller.error
        return self.history


@contextlib.contextmanager
def loading(ports: Mapping[str, int], **options: Any) -> Iterator[Load]:
    load = Load(ports, **options).start()
    try:
        yield load
    finally:
        load.end()


def summary(history: History) -> str:
    calls = list(history.calls)
    counts: dict[tuple[str, str], int] = {}
    for call in calls:
        counts[call.kind, call.outcome] = counts.get((call.kind, call.outcome), 0) + 1
    ended = [call.ended_s - call.began_s for call in calls if call.kind == "submit" and call.ended_s < NEVER]
    told = ", ".join(f"{kind} {outcome} {count}" for (kind, outcome), count in sorted(counts.items()))
    median = sorted(ended)[len(ended) // 2] * 1000 if ended else 0
    return f"{len(calls)} calls, {len(history.acknowledged)} tasks acknowledged, submit median {median:.0f} ms: {told}"

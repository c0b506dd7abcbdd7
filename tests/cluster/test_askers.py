"""Who asked goes along: three nodes with tokens, whichever is asked and whichever leads, through a death and a restart of all."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import MakeCluster, started
from tests.support.harness import Answer, until
from tests.support.memory_tokens import token_of
from tq_node.cli.tokens_file import written
from tq_node.tokens import Role, TokenEntry, hash_of

pytestmark = pytest.mark.cluster

TOKENS = {name: token_of(number) for number, name in enumerate(("chief", "ann", "bob", "mailer", "viewer"), 1)}
ROLES = {"chief": Role.ADMIN, "ann": Role.SUBMIT, "bob": Role.SUBMIT, "mailer": Role.OPERATE, "viewer": Role.VIEW}
NAMES = ("node-1", "node-2", "node-3")
IDS = [f"ann-{number}" for number in range(12)]
"""Over all nodes, whoever leads."""


def shown(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture
def cluster(make_cluster: MakeCluster, tmp_path: Path) -> Cluster:
    tokens, secret = tmp_path / "tokens.toml", tmp_path / "secret"
    for path in (tokens, secret):
        path.touch(mode=0o600)
    entries = [
        TokenEntry(name, hash_of(token), (ROLES[name],), ("mail",) if name == "mailer" else None)
        for name, token in TOKENS.items()
    ]
    tokens.write_text("\n".join(map(written, entries)))
    secret.write_text("5" * 64)
    more = ("--tokens-file", str(tokens), "--secret-file", str(secret))
    return started(make_cluster, more=more, by_peer_port=True, token=TOKENS["chief"])


CHANGES = ("cancel", "purge", "pause")


def ask(cluster: Cluster, who: str, node: str, path: str, body: object = None) -> Answer:
    is_change = body is not None or path.partition("?")[0].rpartition("/")[2] in CHANGES
    return cluster[node].request("POST" if is_change else "GET", path, body, headers=shown(who))


class Events:
    """The stream of all nodes' events at one node, as its token is told them."""

    def __init__(self, cluster: Cluster, who: str, node: str) -> None:
        self.tasks: list[str] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", cluster[node].http_port, timeout=60)
        self._connection.request("GET", "/tasks/events?scope=cluster", headers=shown(who))
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._lines():
            if line.startswith(b"data: {"):
                told = json.loads(line.removeprefix(b"data: "))
                if told.get("from", "") is None:
                    self.tasks.append(told["task_id"])

    def _lines(self) -> Iterator[bytes]:
        try:
            while line := self._response.readline():
                yield line
        except (OSError, ValueError, AttributeError):
            return

    def close(self) -> None:
        sock = self._connection.sock or self._response.fp.raw._sock  # type: ignore[attr-defined]
        sock.shutdown(2)
        self._thread.join(30)
        self._connection.close()


def check_whose(cluster: Cluster, names: list[str]) -> None:
    """Each node knows, by whichever primary, whose the tasks are and of which queue."""
    for node in names:
        for task_id in (IDS[0], IDS[5], IDS[11]):
            assert ask(cluster, "ann", node, f"/tasks/status?id={task_id}").json["payload"] == "secret"
            local = ask(cluster, "ann", node, f"/tasks/status?id={task_id}&consistency=local")
            assert local.json["id"] == task_id
            for who in ("bob", "mailer"):
                assert ask(cluster, who, node, f"/tasks/status?id={task_id}").status == 404
                assert ask(cluster, who, node, f"/tasks/status?id={task_id}&consistency=local").status == 404
            assert ask(cluster, "bob", node, f"/tasks/cancel?id={task_id}").status == 404
            assert ask(cluster, "mailer", node, f"/tasks/purge?id={task_id}").status == 404


def test_whose_a_task_is_every_primary_knows(cluster: Cluster) -> None:
    streams = {who: Events(cluster, who, "node-2") for who in ("ann", "bob", "mailer", "viewer")}
    mail = [f"mail-{number}" for number in range(6)]
    for number, task_id in enumerate(IDS):
        task = {"type": "never", "id": task_id, "payload": "secret", "delay": 3600, "queue": "shop"}
        assert ask(cluster, "ann", NAMES[number % 3], "/tasks/submit", task).status == 201
        assert ask(cluster, "bob", NAMES[(number + 1) % 3], "/tasks/submit", task).json["code"] == "id_conflict"
    batch = {"tasks": [{"type": "never", "id": task_id, "delay": 3600, "queue": "mail"} for task_id in mail]}
    assert ask(cluster, "bob", "node-3", "/tasks/batch", batch).json["accepted"] == len(mail)
    check_whose(cluster, list(NAMES))
    for node in NAMES:
        counts = ask(cluster, "mailer", node, "/tasks/stats?scope=cluster").json
        assert (counts["stats"]["scheduled"], counts["missing"]) == (len(mail), [])
        listed = ask(cluster, "mailer", node, "/tasks/list?scope=cluster").json["tasks"]
        assert [task["id"] for task in listed] == mail
        everything = ask(cluster, "viewer", node, "/tasks/list?scope=cluster")
        assert everything.json["count"] == len(IDS) + len(mail)
        assert b"secret" not in everything.body
    assert ask(cluster, "mailer", "node-1", f"/tasks/cancel?id={mail[0]}").json["status"] == "cancelled"
    assert ask(cluster, "bob", "node-2", f"/tasks/cancel?id={mail[1]}").json["status"] == "cancelled"
    expected = {"ann": IDS, "bob": mail, "mailer": mail, "viewer": [*IDS, *mail]}
    until(lambda: all(set(streams[who].tasks) == set(tasks) for who, tasks in expected.items()), what="all are told")
    for stream in streams.values():
        stream.close()

    # Who ordered it stands in the log of every node, and in the cluster's.
    assert ask(cluster, "mailer", "node-1", "/tasks/pause?queue=shop").json["code"] == "denied"
    assert ask(cluster, "mailer", "node-1", "/tasks/pause?queue=mail").status == 200
    for node in NAMES:
        until(lambda node=node: "token mailer ordered, by entry" in cluster.log(node), what="the order is in the log")  # type: ignore[misc]
        assert "pause queue 'mail'" in cluster.log(node)

    # A death, and a restart of all: rows and log say it.
    cluster["node-1"].kill9()
    until(
        lambda: all(ask(cluster, "ann", "node-2", f"/tasks/status?id={one}").status == 200 for one in IDS),
        what="led anew",
    )
    check_whose(cluster, ["node-2", "node-3"])
    for node in ("node-2", "node-3"):
        assert cluster[node].terminate() == 0
    cluster.start()
    cluster.wait_ready()
    until(
        lambda: all(ask(cluster, "ann", "node-3", f"/tasks/status?id={one}").status == 200 for one in IDS),
        what="led anew",
    )
    check_whose(cluster, list(NAMES))

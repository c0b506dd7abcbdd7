"""Tokens of the cluster's table at three nodes: how soon a change counts at each, what counts at one that is cut off, dead
meanwhile, stopped for a while or started again, and what the file of one node adds.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster, whole_cluster
from tests.support.harness import NodeHttp, TimedOut, until
from tests.support.memory_tokens import token_of
from tq_node.cli.tokens_file import with_token, without_token, written
from tq_node.tokens import Role, TokenEntry, hash_of

pytestmark = pytest.mark.cluster

NAMES = ("node-1", "node-2", "node-3")
KNOWN_S = 1.0
"""Within so long a change counts at each node that reaches a majority (section 12 of the contract), ..."""
CUT_OFF_S = 2.0
"""... and after so long without one nothing of the table counts."""
SLACK_S = 0.5
"""What the machine, and the asking itself, may take besides."""
GLASS = token_of(11)
"""Of the file of node-3."""


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def ask(cluster: Cluster, name: str, token: str) -> int:
    """The status of an answer; 0: there is none."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return NodeHttp(cluster.ports[name]).get("/cluster", headers=bearer(token), deadline_s=5.0).status
    return 0


class Asking(threading.Thread):
    """Asks a node again and again with one token (empty: with none): when it answered, and what."""

    def __init__(self, cluster: Cluster, name: str, token: str) -> None:
        super().__init__(daemon=True)
        self.heard: list[tuple[float, int]] = []
        self._cluster, self._name, self._token = cluster, name, token
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.heard.append((time.monotonic(), ask(self._cluster, self._name, self._token)))

    def statuses(self) -> set[int]:
        return {status for _, status in list(self.heard)}

    @property
    def newest(self) -> int | None:
        return self.heard[-1][1] if self.heard else None

    def last(self, status: int) -> float:
        return max((at_s for at_s, known in list(self.heard) if known == status), default=0.0)

    def end(self) -> None:
        self._over.set()
        self.join(10)


@contextlib.contextmanager
def asking(cluster: Cluster, names: Iterable[str], token: str) -> Iterator[dict[str, Asking]]:
    threads = {name: Asking(cluster, name, token) for name in names}
    for thread in threads.values():
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads.values():
            thread.end()


@pytest.fixture(scope="module")
def glass_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text(written(TokenEntry("glass", hash_of(GLASS), (Role.ADMIN,))))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, glass_file: Path) -> Iterator[Cluster]:
    def options(name: str) -> list[str]:
        return ["--tokens-file", str(glass_file)] if name == "node-3" else []

    with whole_cluster(
        tmp_path_factory.mktemp("nodes"), NAMES, links=True, own_options=options, token=GLASS
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ops(cluster: Cluster) -> str:
    """The first token, made while nobody is asked for one, but at node-3."""
    assert (ask(cluster, "node-1", ""), ask(cluster, "node-2", ""), ask(cluster, "node-3", "")) == (200, 200, 401)
    token = put(cluster, "node-1", "", "ops", "admin")
    for name in NAMES:
        assert (ask(cluster, name, ""), ask(cluster, name, token)) == (401, 200), name
    for process in cluster.processes.values():
        process.token = token
    return token


def put(cluster: Cluster, node: str, by: str, name: str, *roles: str, **fields: object) -> str:
    body = {"name": name, "roles": roles, **fields}
    answer = NodeHttp(cluster.ports[node]).post("/tokens/put", body, headers=bearer(by), deadline_s=10)
    assert answer.status == 200, answer
    token = answer.json["token"]
    assert isinstance(token, str)
    return token


def revoke(cluster: Cluster, node: str, by: str, name: str) -> float:
    """When it was answered."""
    answer = cluster[node].post(f"/tokens/revoke?name={name}", headers=bearer(by), deadline_s=10)
    assert answer.status == 200, answer
    return time.monotonic()


def test_a_token_counts_everywhere_and_no_more_within_a_second_of_its_end(cluster: Cluster, ops: str) -> None:
    for round_, (made_at, ended_at) in enumerate([("node-2", "node-3"), ("node-3", "node-1"), ("node-1", "node-2")]):
        token = put(cluster, made_at, ops, f"short-{round_}", "view")
        assert {ask(cluster, name, token) for name in NAMES} == {200}
        with asking(cluster, NAMES, token) as heard:
            until(lambda: all(one.heard for one in heard.values()), what="all are asked")
            began_s = time.monotonic()
            revoke(cluster, ended_at, ops, f"short-{round_}")
            until(lambda: all(one.newest == 401 for one in heard.values()), what="refused")
            time.sleep(0.2)
        late_s = {name: one.last(200) - began_s for name, one in heard.items()}
        print(f"counted after the order to end it: { ({name: round(late, 3) for name, late in late_s.items()}) }")
        assert max(late_s.values()) < KNOWN_S
        assert {status for one in heard.values() for status in one.statuses()} == {200, 401}


def test_a_token_put_again_ends_the_earlier_one(cluster: Cluster, ops: str) -> None:
    first = put(cluster, "node-1", ops, "twice", "view")
    second = put(cluster, "node-2", ops, "twice", "view")
    assert {(ask(cluster, name, first), ask(cluster, name, second)) for name in NAMES} == {(401, 200)}
    revoke(cluster, "node-3", ops, "twice")


def test_what_the_table_refuses_is_said_as_what_it_is(cluster: Cluster, ops: str) -> None:
    for name in NAMES:  # also by one that asks the leader
        answer = cluster[name].post("/tokens/revoke?name=nobody", headers=bearer(ops))
        assert (answer.status, answer.json["code"], answer.json["title"]) == (404, "not_found", "No such token")


def test_a_token_ends_by_itself(cluster: Cluster, ops: str) -> None:
    token = put(cluster, "node-1", ops, "brief", "view", expires_in=1.5)
    made_s = time.monotonic()
    with asking(cluster, NAMES, token) as heard:
        until(lambda: all(one.newest == 401 for one in heard.values()), what="it has expired")
    for name, one in heard.items():
        assert one.statuses() == {200, 401}, name
        assert one.last(200) - made_s < 1.5 + KNOWN_S
    revoke(cluster, "node-2", ops, "brief")


def test_one_that_was_dead_meanwhile_does_not_take_what_was_revoked(cluster: Cluster, ops: str) -> None:
    token = put(cluster, "node-1", ops, "late", "view")
    assert ask(cluster, "node-2", token) == 200
    cluster["node-2"].kill9()
    revoke(cluster, "node-1", ops, "late")
    with asking(cluster, ["node-2"], token) as revoked, asking(cluster, ["node-2"], "") as nobody:
        cluster.start("node-2")
        cluster["node-2"].token = ops
        until(lambda: revoked["node-2"].newest == 401, deadline_s=20, what="it knows")
        until(lambda: ask(cluster, "node-2", ops) == 200, what="others count")
    assert revoked["node-2"].statuses() <= {0, 503, 401}, "cautious until it knows"
    assert nobody["node-2"].statuses() == {0, 401}, "it asks from its first moment on"
    cluster.wait_whole()


def test_one_that_reaches_no_majority_takes_none_of_the_table_but_its_own(cluster: Cluster, ops: str) -> None:
    token = put(cluster, "node-1", ops, "cut", "view")
    assert cluster.links is not None
    with asking(cluster, ["node-3"], token) as cut, asking(cluster, ["node-3"], "") as nobody:
        until(lambda: cut["node-3"].heard, what="it is asked")
        began_s = time.monotonic()
        cluster.links.isolate("node-3", ["node-1", "node-2"])
        until(lambda: cut["node-3"].newest == 503, deadline_s=10, what="it counts no more")
        over_s = cut["node-3"].last(200) - began_s
        print(f"counted for {over_s:.2f} s after the cut")
        assert over_s < CUT_OFF_S + SLACK_S
        answer = cluster["node-3"].get("/cluster", headers=bearer(ops))
        assert (answer.status, answer.json["code"], "retry-after" in answer.headers) == (503, "not_ready", True)
        assert "tokens_stale" in _notes(cluster)
        assert ask(cluster, "node-3", GLASS) == 200, "the file's counts all the same"
        assert ask(cluster, "node-3", token_of(99)) in (401, 503), "what it can't know it does not take"
        until(lambda: ask(cluster, "node-1", ops) == 200, what="the majority has a leader")
        until(lambda: _revoked(cluster, ops), deadline_s=15, what="the others end it")
        healed_s = time.monotonic()
        cluster.links.heal()
        until(lambda: ask(cluster, "node-3", ops) == 200, deadline_s=15, what="it counts again")
        until(lambda: cut["node-3"].newest == 401, what="but not what was revoked")
    assert not [at_s for at_s, status in cut["node-3"].heard if status == 200 and at_s > healed_s]
    assert nobody["node-3"].statuses() == {401}
    assert "tokens_stale" not in _notes(cluster)
    cluster.wait_whole()


def _revoked(cluster: Cluster, by: str) -> bool:
    """A first try may meet an election, and one whose outcome is unknown may have done it."""
    answer = cluster["node-1"].post("/tokens/revoke?name=cut", headers=bearer(by), deadline_s=10)
    return answer.status in (200, 404)


def test_one_that_was_stopped_for_a_while_does_not_take_what_was_revoked(cluster: Cluster, ops: str) -> None:
    """Its clock did not stand still; what lies in its sockets is from before."""
    token = put(cluster, "node-1", ops, "asleep", "view")
    follower = next(name for name in NAMES if name != cluster.leader())
    other = next(name for name in NAMES if name not in (follower, cluster.leader()))
    cluster[follower].stop()
    try:
        revoke(cluster, other, ops, "asleep")
        time.sleep(CUT_OFF_S + 0.5)  # what is awaited here is that time passes
    finally:
        cluster[follower].cont()
    statuses = {ask(cluster, follower, token) for _ in range(20)}
    assert statuses <= {401, 503}
    until(lambda: ask(cluster, follower, ops) == 200, deadline_s=15, what="it counts again")
    assert ask(cluster, follower, token) == 401
    cluster.wait_whole()


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(cluster: Cluster, ops: str, glass_file: Path) -> None:
    more = token_of(12)
    assert ask(cluster, "node-3", more) == 401
    began_s = time.monotonic()
    with_token(glass_file, TokenEntry("more", hash_of(more), (Role.VIEW,)))
    until(lambda: ask(cluster, "node-3", more) == 200, deadline_s=2 / 4, what="within 2 s")
    print(f"a new one of the file counted after {time.monotonic() - began_s:.2f} s")
    whole = glass_file.read_text()
    glass_file.write_text(whole.replace("sha256:", "md5:"))
    note = until(lambda: _file_note(cluster), what="it is said")
    assert "--tokens-file" in note
    assert "more" not in note.replace("token 'more'", ""), "no more than which and why"
    assert {ask(cluster, "node-3", one) for one in (more, GLASS, ops)} == {200}
    assert "files_unusable" in cluster.log("node-3") or "is not used, the earlier one is" in cluster.log("node-3")
    glass_file.write_text(whole)
    until(lambda: not _file_note(cluster), what="it is well again")
    without_token(glass_file, "more")
    until(lambda: ask(cluster, "node-3", more) == 401, deadline_s=2 / 4, what="within 2 s")
    assert ask(cluster, "node-1", GLASS) == 401, "of another node's file"


def _file_note(cluster: Cluster) -> str:
    return _notes(cluster).get("files_unusable", "")


def _notes(cluster: Cluster) -> dict[str, str]:
    """Of node-3."""
    return {note["code"]: note["detail"] for note in cluster["node-3"].get("/ready").json["notes"]}


def test_no_call_fails_while_other_tokens_come_and_go(cluster: Cluster, ops: str, glass_file: Path) -> None:
    with asking(cluster, NAMES, ops) as by_table, asking(cluster, ["node-3"], GLASS) as by_file:
        for turn in range(3):
            with_token(glass_file, TokenEntry("other", hash_of(token_of(20 + turn)), (Role.VIEW,)))
            put(cluster, NAMES[turn], ops, "other", "view")
            until(lambda: ask(cluster, "node-3", token_of(20 + turn)) == 200, what="the file counts")  # noqa: B023
            without_token(glass_file, "other")
            revoke(cluster, NAMES[turn - 1], ops, "other")
    calls = [len(one.heard) for one in (*by_table.values(), *by_file.values())]
    print(f"{sum(calls)} calls, by threads: {calls}")
    assert {status for one in (*by_table.values(), *by_file.values()) for status in one.statuses()} == {200}
    assert min(calls) > 30


def test_a_command_makes_lists_and_ends_them(cluster: Cluster, ops: str, tmp_path: Path) -> None:
    held = tmp_path / "ops.token"
    held.touch(mode=0o600)
    held.write_text(ops)
    at = ["--url", f"http://127.0.0.1:{cluster.ports['node-2']}", "--token-file", str(held)]
    made = tool("new", "--name", "tool", "--role", "read", "--expires-in", "1h", *at)
    assert ask(cluster, "node-3", made.strip()) == 200
    assert [line.split()[0] for line in tool("list", *at).splitlines()] == ["NAME", "ops", "tool"]
    assert tool("revoke", "tool", *at) == ""
    assert ask(cluster, "node-1", made.strip()) == 401


def tool(*arguments: str) -> str:
    command = [sys.executable, "-m", "tq_node.cli.token_tool", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_one_that_joins_with_tokens_asks_before_it_knows_the_table(cluster: Cluster, ops: str) -> None:
    newcomer = cluster.nodes.start(
        *("--node-id", "node-4", "--tokens", "--join", f"localhost:{cluster.ports['node-1']}"),
        cwd=cluster.home,
        wait=False,
    )
    cluster.ports["node-4"] = newcomer.http_port
    try:
        with asking(cluster, ["node-4"], "") as nobody, asking(cluster, ["node-4"], ops) as known:
            until(lambda: known["node-4"].newest == 200, deadline_s=30, what="it has joined")
        assert nobody["node-4"].statuses() <= {0, 401} == nobody["node-4"].statuses() | {0}
        assert known["node-4"].statuses() <= {0, 503, 200}
    finally:
        newcomer.close()
        del cluster.ports["node-4"]
    assert cluster["node-1"].post("/cluster/remove?node=node-4", headers=bearer(ops)).status == 202


def test_all_started_again_ask_from_the_first_moment_on_also_without_any_token_left(cluster: Cluster, ops: str) -> None:
    revoke(cluster, "node-1", ops, "ops")
    cluster.stop()
    with asking(cluster, NAMES, "") as nobody, asking(cluster, NAMES, ops) as ended:
        cluster.start()
        cluster["node-3"].token = GLASS
        until(
            lambda: ask(cluster, "node-3", GLASS) == 200 and cluster["node-3"].is_ready,
            deadline_s=30,
            what="it is back",
        )
        again = until(lambda: _made(cluster), deadline_s=10, what="the file makes the next one")
        until(lambda: all(one.newest == 401 for one in ended.values()), what="all know")
    assert {status for one in nobody.values() for status in one.statuses()} == {0, 401}
    assert {status for one in ended.values() for status in one.statuses()} <= {0, 401, 503}
    assert {ask(cluster, name, again) for name in NAMES} == {200}


def _made(cluster: Cluster) -> str:
    with contextlib.suppress(AssertionError, OSError, TimedOut):
        return put(cluster, "node-3", GLASS, "next", "admin")
    return ""

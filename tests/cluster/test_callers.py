"""The matrix of who may call what, asked of a real node over real sockets, at both ways in."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import msgspec
import pytest

from tests.support.access_matrix import BAD, EXPIRED, GROUP_OF, NOBODY, ROLES, UNSURE, expected, request_of, verdict
from tests.support.harness import HTTP_S, NodeProcess, Nodes
from tests.support.memory_tokens import token_of
from tq_node.audit import AuditLine, Chain, findings_of
from tq_node.cli.tokens_file import written
from tq_node.tokens import Role, TokenEntry, hash_of

pytestmark = pytest.mark.cluster

PLAIN = ""
LONG = "X-Long-Way: 1\r\n"
"""A header that the fast path leaves to ``twisted.web``."""
AT_ONCE = 200
JUDGED_S = 120.0


def tokens_file(directory: Path) -> tuple[Path, dict[str, str]]:
    """A file with a token of each role, and one that has expired; the header line of each caller."""
    tokens = {role: token_of(number) for number, role in enumerate(ROLES, 1)} | {EXPIRED: token_of(99)}
    entries = [TokenEntry(role, hash_of(tokens[role]), (Role(role),)) for role in ROLES]
    entries.append(
        TokenEntry(EXPIRED, hash_of(tokens[EXPIRED]), (Role.ADMIN,), expires_us=int(time.time() - 60) * 10**6)
    )
    path = directory / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text("\n".join(map(written, entries)))
    shown = tokens | {BAD: token_of(100)}
    return path, {who: f"Authorization: Bearer {token}\r\n" for who, token in shown.items()} | {NOBODY: ""}


def answers(node: NodeProcess, requests: list[bytes]) -> list[bytes]:
    """To requests that are all under way together, each on a connection of its own."""
    connections = [socket.create_connection(("127.0.0.1", node.http_port), HTTP_S) for _ in requests]
    try:
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        return [answer_on(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.close()


def answer_on(connection: socket.socket) -> bytes:
    """The answer up to where its length, if it says one, is there."""
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        if end and len(body) >= length:
            return received
        more = connection.recv(65_536)
        assert more, received
        received += more


def refused_in(log: Path) -> int:
    """Refusals that an audit log holds, after a look that it is whole."""
    chain = Chain()
    lines = log.read_bytes().splitlines()
    assert not list(findings_of(chain, (("", line) for line in lines)))
    said = [msgspec.json.decode(line, type=AuditLine) for line in lines]
    counted = sum(int(one.what.split()[0]) for one in said if one.outcome == 0)  # beyond those of a second with lines
    return counted + sum(one.outcome in (401, 403, 421) for one in said)


def test_every_cell_at_both_ways_in(nodes: Nodes, tmp_path: Path) -> None:
    path, shown = tokens_file(tmp_path)
    log = tmp_path / "audit"
    node = nodes.start("--tokens-file", str(path), "--audit-log", str(log))
    paths = node.get("/openapi.json").json["paths"]
    operations = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert sorted(operations) == sorted(GROUP_OF)
    cells = [(operation, who, way) for operation in operations for who in shown for way in (PLAIN, LONG)]
    wrong = []
    refused = 0
    left, give_up_s = list(cells), time.monotonic() + JUDGED_S
    while left:
        some, left = left[:AT_ONCE], left[AT_ONCE:]
        told = answers(node, [request_of(operation, way + shown[who]) for operation, who, way in some])
        refused += sum(answer.split(b" ", 2)[1] in (b"401", b"403", b"421") for answer in told)
        for cell, answer in zip(some, told, strict=True):
            found = verdict(answer)
            if found == UNSURE and cell[1] == BAD:
                # Its table is not confirmed, on a busy machine: no node knows then that a token was never made.
                assert time.monotonic() < give_up_s
                left.append(cell)
            elif found != expected(cell[0], cell[1]):
                wrong.append((cell, found))
    print(f"{len(cells)} cells")
    assert not wrong
    assert len(cells) == len(GROUP_OF) * (len(ROLES) + 3) * 2 >= 550
    assert node.terminate() == 0
    assert refused_in(log) == refused > 200
    kept = [path for path in nodes.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite3" for path in kept)
    for path in kept:
        content = path.read_bytes()
        assert not [who for who, line in shown.items() if line and line.split()[2].encode() in content], path


def test_open_metrics_are_open_and_nothing_else_is(nodes: Nodes, tmp_path: Path) -> None:
    path, _ = tokens_file(tmp_path)
    node = nodes.start("--tokens-file", str(path), "--open-metrics")
    assert node.get("/metrics").status == 200
    for closed in ("/tasks/list", "/tasks/status?id=a", "/cluster", "/audit", "/tokens/list"):
        assert node.get(closed).status == 401
    assert node.terminate() == 0

"""Who may call what, written down by hand: the product's own table is nowhere looked at."""

from __future__ import annotations

import re

NOBODY, BAD, EXPIRED = "nobody", "bad", "expired"
ROLES = ("view", "read", "submit", "work", "operate", "admin")
MATRIX = {
    # group of routes: who may (the rest gets 403), and the role that the refusal names
    "open to all": ("nobody bad expired view read submit work operate admin", ""),
    "counts, lists, cluster": ("view read operate admin", "view"),
    "one task, events": ("view read submit operate admin", "view"),
    "submits": ("submit work operate admin", "submit"),
    "cancel": ("submit operate admin", "submit"),
    "changes of tasks, queues, workers": ("operate admin", "operate"),
    "the worker API": ("work operate admin", "work"),
    "changes of the cluster": ("admin", "admin"),
    "tokens, audit log": ("admin", "admin"),
}
ROUTES = {
    "open to all": """
        GET /
        GET /health
        GET /livez
        GET /ready
        GET /readyz
        GET /openapi.json
        GET /problems/{code}
        POST /cluster/join
    """,
    "counts, lists, cluster": """
        GET /tasks/list
        GET /tasks/dead
        GET /tasks/stats
        GET /handlers
        GET /workers
        GET /types/list
        GET /cluster
        GET /cluster/partitions
        GET /metrics
    """,
    "one task, events": """
        GET /tasks/status
        GET /tasks/events
    """,
    "submits": """
        POST /tasks/submit
        POST /tasks/batch
    """,
    "cancel": """
        POST /tasks/cancel
    """,
    "changes of tasks, queues, workers": """
        POST /tasks/retry
        POST /tasks/purge
        POST /tasks/pause
        POST /tasks/resume
        POST /workers/reload
        POST /types/put
        POST /types/delete
        POST /workers/quiet
        POST /workers/stop
        POST /workers/resume
    """,
    "the worker API": """
        POST /work/claim
        POST /work/extend
        POST /work/finish
        POST /workers/announce
    """,
    "changes of the cluster": """
        POST /cluster/invite
        POST /cluster/drain
        POST /cluster/undrain
        POST /cluster/remove
        POST /cluster/rebalance
        POST /cluster/shutdown
        POST /cluster/snapshot
        POST /cluster/unsafe-recover
    """,
    "tokens, audit log": """
        GET /audit
        POST /tokens/put
        GET /tokens/list
        POST /tokens/revoke
    """,
}
GROUP_OF = {
    (method, path): group
    for group, lines in ROUTES.items()
    for method, path in (line.split() for line in lines.split("\n") if line.strip())
}


def expected(operation: tuple[str, str], who: str) -> str:
    allowed, missing = MATRIX[GROUP_OF[operation]]
    if who in allowed.split():
        return "let in"
    return f"403 {missing}" if who in ROLES else "401"


UNSURE = "503"


def verdict(answer: bytes) -> str:
    """What an answer says of its caller: ``let in``, whatever the handler says, ``401``, ``403`` with the missing role, or
    ``UNSURE``, of a token that the node can't judge by now."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    if status == 401:
        assert b"WWW-Authenticate: Bearer" in head
        return "401"
    if status == 503 and b"whether the token is still valid" in body:
        return UNSURE
    missing = re.search(rb'"detail":"the role (\w+) is missing', body) if status == 403 else None
    return f"403 {missing[1].decode()}" if missing else "let in"


def request_of(operation: tuple[str, str], more: str = "") -> bytes:
    """A request that reaches the operation, and asks nothing that would end the world.

    :param more: header lines, each with its line end."""
    method, path = operation
    target = path.replace("{code}", "busy") + ("?id=a" if path == "/tasks/status" else "")
    body = '{"type":"a"}' if method == "POST" else ""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}{length}\r\n{body}".encode()

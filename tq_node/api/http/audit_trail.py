"""Which requests become lines of the audit log: each that changed something or may have, and each
that was refused for who sent it.

``RequestLifecycle`` says when a request has its answer, whichever way it came in. A request that is
answered before its body is there is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node import limits
from tq_node.api.access.access import Caller
from tq_node.audit import AuditRecord

REFUSED = frozenset({401, 403, 421})
"""Answers to who may not: a line each, for any method."""
HUNG_UP = 499
"""Outcome of a request whose client was gone before the answer: it may have been done."""
_UNTRIED = frozenset({400, 405, 413, 415, 422, 429, 503})
"""Answers that say that the request is none, or can be sent again: nothing was looked at."""
_NAMING = frozenset({b"id", b"node", b"queue", b"type", b"name", b"partition", b"action", b"worker"})
"""Parameters that say what a request is about. Others may hold what is nobody's business."""
_SECOND_S = 1.0


class AuditSink(Protocol):
    """Where records go. Must not block."""

    def write(self, record: AuditRecord) -> None: ...


class Audited(Protocol):
    """What it looks at of an ``Exchange``."""

    route: str
    caller: Caller
    changed: Sequence[str] | None
    request_id: bytes

    @property
    def client_host(self) -> str: ...

    @property
    def method(self) -> bytes: ...

    @property
    def path(self) -> bytes: ...

    @property
    def args(self) -> Mapping[bytes, Sequence[bytes]] | None: ...


class AuditTrail:
    """Writes the records of one server's requests.

    :param wall_us: calendar time in microseconds."""

    def __init__(self, sink: AuditSink, reactor: IReactorTime, wall_us: Callable[[], int]) -> None:
        self._write = sink.write
        self._reactor = reactor
        self._wall_us = wall_us
        self._refused = 0
        """Refusals of this second."""
        self._second: IDelayedCall | None = None
        """The end of the second; None: nothing was refused in it."""
        self._is_closed = False

    def ended(self, request: Audited, outcome: int) -> None:
        """A request has its answer, or its client has hung up."""
        if outcome in REFUSED:
            if self._second is None and not self._is_closed:
                self._second = self._reactor.callLater(_SECOND_S, self._end_second)
            self._refused += 1
            if self._refused <= limits.AUDIT_REFUSALS_PER_S or self._is_closed:
                self._record(request, outcome, _named(request))
        elif (
            request.method == b"POST"
            and request.changed is not None
            and request.route != "other"
            and outcome not in _UNTRIED
        ):
            for what in _lines(request.changed) if request.changed else (_named(request),):
                self._record(request, outcome, what)

    def close(self) -> None:
        """Write what is held back, and hold nothing back any more."""
        self._is_closed = True
        if self._second is not None:
            self._second.cancel()
            self._end_second()

    def _record(self, request: Audited, outcome: int, what: str) -> None:
        self._write(
            AuditRecord(
                self._wall_us(),
                request.request_id,
                request.caller.name,
                request.client_host,
                request.method,
                request.path[: limits.AUDIT_PATH_CHARS_MAX],
                what,
                outcome,
            )
        )

    def _end_second(self) -> None:
        self._second = None
        more, self._refused = self._refused - limits.AUDIT_REFUSALS_PER_S, 0
        if more > 0:
            self._write(AuditRecord(self._wall_us(), what=f"{more} more requests were refused within this second"))


def _named(request: Audited) -> str:
    """What the query names."""
    args = request.args
    if not args:
        return ""
    named = [b"%b=%b" % (name, values[0]) for name, values in args.items() if name in _NAMING]
    return b"&".join(named)[: limits.AUDIT_WHAT_CHARS_MAX].decode("utf-8", "replace")


def _lines(names: Sequence[str]) -> Iterator[str]:
    """The names, as many in a line as it holds."""
    if len(names) == 1:
        yield names[0][: limits.AUDIT_WHAT_CHARS_MAX]
        return
    line: list[str] = []
    size = 0
    for name in names:
        size += len(name) + 1
        if size > limits.AUDIT_WHAT_CHARS_MAX and line:
            yield " ".join(line)
            line, size = [], len(name) + 1
        line.append(name[: limits.AUDIT_WHAT_CHARS_MAX])
    yield " ".join(line)

"""``GET /audit``: the audit log of the node that is asked, as it is written."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType
from twisted.internet.defer import Deferred

from tq_node import audit, errors, limits
from tq_node.api.access.access import Access
from tq_node.api.access.scope import must_be_for_all_queues
from tq_node.api.http.audit_trail import AuditSink
from tq_node.api.http.request import ApiRequest
from tq_node.api.problems import NoAuditLog
from tq_node.api.query import read_query
from tq_node.api.routes import Answer, Route
from tq_node.audit import AuditLine, Page
from tq_node.errors import BadParameter
from tq_node.facade import TaskQueue

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class AuditLog(AuditSink, Protocol):
    """The log of this node, which the composition root opens."""

    def read(self, since: str, place: tuple[int, int] | None, lines_max: int) -> Deferred[Page]: ...


class AuditParameters(msgspec.Struct, forbid_unknown_fields=True):
    since: Annotated[str, Meta(description="RFC 3339 or Unix seconds; lines from then on")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=limits.LIST_LIMIT_MAX)] = limits.LIST_LIMIT_DEFAULT
    cursor: (
        Annotated[
            str,
            Meta(
                pattern=r"^([0-9]{1,12}-[0-9]{1,15})?$", description="`next` of the page before, with the same `since`"
            ),
        ]
        | UnsetType
    ) = UNSET


class AuditAnswer(msgspec.Struct):
    """``unreadable`` counts what is in the file and is no line of it: it was tampered with."""

    lines: list[AuditLine]
    count: int
    unreadable: int
    node: str
    next: str | None


class AuditRoutes:
    """``log`` None: the node keeps none."""

    def __init__(self, queue: TaskQueue, log: AuditLog | None) -> None:
        self._queue = queue
        self._log = log

    def lines(self, request: ApiRequest) -> Deferred[None]:
        must_be_for_all_queues(request.caller, "the audit log")
        sent = read_query(request, AuditParameters)
        if self._log is None:
            raise NoAuditLog(f"{self._queue.node_name} keeps no audit log: it was started without --audit-log")
        place = _place(sent.cursor) if sent.cursor else None
        return self._log.read(_since(sent.since), place, sent.limit).addCallback(self._answer, request)

    def _answer(self, page: Page, request: ApiRequest) -> None:
        file_and_offset = page.next
        rest = _encode(
            AuditAnswer(
                lines=[],
                count=len(page.lines),
                unreadable=page.unreadable,
                node=self._queue.node_name,
                next=None if file_and_offset is None else "{}-{}".format(*file_and_offset),
            )
        )
        # As written: the next line's hash is of these bytes.
        request.answer(200, b'{"lines":[' + b",".join(page.lines) + rest[len(b'{"lines":[') :])

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/audit",
                Access.ADMIN,
                self.lines,
                "What was changed and refused at this node, and who asked for it",
                {200: Answer("a page of lines, the oldest first", AuditAnswer)},
                query=AuditParameters,
                errors=(errors.Denied, NoAuditLog, errors.Busy),
            )
        ]


def _place(cursor: str) -> tuple[int, int]:
    number, _, offset = cursor.strip("\n").partition("-")
    return int(number), int(offset)


def _since(text: str | UnsetType) -> str:
    """The instant as lines have it, which sorts as text; empty: from the first line on."""
    if not text:
        return ""
    try:
        try:
            return audit.instant(max(0, round(float(text) * 1_000_000)))
        except ValueError:
            pass
        # A plus sign that was not percent-encoded has become a space.
        at = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
        if at.tzinfo is None:
            raise BadParameter("since: an offset is missing: Z, or +01:00")
        return audit.instant(max(0, round((at - _EPOCH).total_seconds() * 1_000_000)))
    except (ValueError, OverflowError):
        raise BadParameter("since: neither RFC 3339 nor Unix seconds") from None

"""``/types/…`` and ``/workers/announce``: defaults of task types, which count at a task's birth."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from twisted.internet.defer import Deferred

from tq_node import errors, limits
from tq_node.api.access.access import Access, Caller
from tq_node.api.access.scope import must_be_for_all_queues, must_be_its_queue
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.media import JSON_TYPE, refuse_encoded, takes_lines
from tq_node.api.json_pointer import refusal
from tq_node.api.names import refuse_unshown
from tq_node.api.problems import PeerUnreachable
from tq_node.api.query import NoParameters, read_query
from tq_node.api.requests import BackoffRequest, BackoffSeconds, QueueText, TypeText, Whole, backoff_of
from tq_node.api.responses import BackoffOut, defaults_of
from tq_node.api.routes import Answer, Route
from tq_node.errors import InvalidField
from tq_node.facade import TaskQueue
from tq_node.types import HandledType

Body = TypeVar("Body", bound=msgspec.Struct)


class TypeFields(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Defaults of a type's tasks. Times in seconds. What is not given is left to whoever comes
    next: submit, then what operators put, then handlers, then the program."""

    type: TypeText
    queue: QueueText | None = None
    max_attempts: Annotated[Whole, Meta(ge=1, le=limits.MAX_ATTEMPTS_MAX)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=limits.TIMEOUT_S_MAX, description="seconds for one attempt")] | None = None
    backoff: BackoffSeconds | BackoffRequest | None = None


class AnnounceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The types that a remote worker has handlers for, with the defaults that these declare."""

    worker: Annotated[str, Meta(min_length=1, max_length=limits.WORKER_CHARS_MAX)]
    types: Annotated[list[TypeFields], Meta(max_length=limits.HANDLED_TYPES_MAX)]


class TypeOut(msgspec.Struct, omit_defaults=True):
    """``set_by``: ``operator``, by ``POST /types/put``, or ``worker``, by its announcement."""

    type: str
    set_by: str
    queue: str | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    backoff: BackoffOut | UnsetType = UNSET


class TypesAnswer(msgspec.Struct):
    """In order of types; an operator's goes before a worker's of the same type."""

    types: list[TypeOut]


class TypeDone(msgspec.Struct):
    success: bool
    type: str


class Announced(msgspec.Struct):
    success: bool
    worker: str
    types: int


class TypeParameters(msgspec.Struct, forbid_unknown_fields=True):
    type: Annotated[str, Meta(min_length=1, max_length=limits.TASK_TYPE_CHARS_MAX)]


_encode = msgspec.json.Encoder().encode
_BODY_ERRORS = (errors.BodyTooLarge, errors.NotJson, errors.UnknownField, errors.MissingField, errors.InvalidField)
_CHANGE_ERRORS = (
    errors.ClusterRefused,
    errors.NotReady,
    errors.Draining,
    errors.NoController,
    errors.Upgrading,
    PeerUnreachable,
    errors.OutcomeUnknown,
)


class TypeRoutes:
    """Routes about the defaults of types."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue

    def put(self, request: Exchange) -> Deferred[None]:
        sent = _sent(request, TypeFields)
        entry = _entry(sent, "")
        must_be_for_all_queues(request.caller, "the defaults of a type")
        done = TypeDone(True, entry.type)
        request.changed = (entry.type,)
        put = self._queue.put_type(entry, request.caller.name)
        return put.addCallback(lambda _: request.answer(200, _encode(done)))

    def show(self, request: Exchange) -> None:
        read_query(request, NoParameters)
        table = self._queue.type_table()
        shown = [
            TypeOut(entry.type, set_by, **defaults_of(entry))
            for entries, set_by in ((table.put, "operator"), (table.announced, "worker"))
            for entry in entries
            if _may_see(request.caller, entry)
        ]
        shown.sort(key=lambda one: one.type)
        request.answer(200, _encode(TypesAnswer(shown)))

    def delete(self, request: Exchange) -> Deferred[None]:
        task_type = read_query(request, TypeParameters).type
        must_be_for_all_queues(request.caller, "the defaults of a type")
        done = TypeDone(True, task_type)
        deleted = self._queue.delete_type(task_type, request.caller.name)
        return deleted.addCallback(lambda _: request.answer(200, _encode(done)))

    def announce(self, request: Exchange) -> Deferred[None]:
        sent = _sent(request, AnnounceRequest)
        refuse_unshown("worker", sent.worker, "")
        entries = []
        for place, one in enumerate(sent.types):
            if one.queue is not None:
                must_be_its_queue(request.caller, one.queue)
            entries.append(_entry(one, f"/types/{place}"))
        if len(msgspec.msgpack.encode(entries)) > limits.HANDLED_BYTES_MAX:
            raise InvalidField(f"types: they take more than {limits.HANDLED_BYTES_MAX} bytes", field="/types")
        # One that says nothing of its tasks changes nothing.
        telling = tuple(entry for entry in entries if entry != HandledType(entry.type))
        request.changed = (sent.worker, *(entry.type for entry in telling))
        done = Announced(True, sent.worker, len(entries))
        announced = self._queue.announce_types(telling, request.caller.name)
        return announced.addCallback(lambda _: request.answer(200, _encode(done)))

    # --- the route table ---
    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/types/put",
                Access.OPERATE,
                self.put,
                "Set the defaults of a type's tasks, in place of those put before; they count at birth",
                {200: Answer("every node knows", TypeDone)},
                bodies={"application/json": TypeFields},
                errors=(*_BODY_ERRORS, errors.Denied, *_CHANGE_ERRORS),
            ),
            Route(
                "GET",
                "/types/list",
                Access.LOOK,
                self.show,
                "The defaults of types that operators put and remote workers announced",
                {200: Answer("by type", TypesAnswer)},
            ),
            Route(
                "POST",
                "/types/delete",
                Access.OPERATE,
                self.delete,
                "Forget the defaults of a type that were put or announced",
                {200: Answer("every node knows", TypeDone)},
                query=TypeParameters,
                errors=(errors.NoSuchType, errors.Denied, *_CHANGE_ERRORS),
            ),
            Route(
                "POST",
                "/workers/announce",
                Access.WORK,
                self.announce,
                "Say which defaults a remote worker's handlers have; what operators put goes before them",
                {200: Answer("every node knows", Announced)},
                bodies={"application/json": AnnounceRequest},
                errors=(*_BODY_ERRORS, errors.Denied, *_CHANGE_ERRORS),
            ),
        ]


def _sent(request: Exchange, kind: type[Body]) -> Body:
    read_query(request, NoParameters)
    body = request.body()
    takes_lines(request.getHeader(b"content-type") or JSON_TYPE, body, ndjson=False)
    refuse_encoded(request.getHeader(b"content-encoding"))
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as why:
        raise refusal(body, kind, why) from None


def _entry(sent: TypeFields, at: str) -> HandledType:
    refuse_unshown("type", sent.type, at)
    if sent.queue is not None:
        refuse_unshown("queue", sent.queue, at)
    return HandledType(
        sent.type,
        sent.queue,
        None if sent.max_attempts is None else int(sent.max_attempts),
        None if sent.timeout is None else max(1, round(sent.timeout * 1_000)),
        None if sent.backoff is None else backoff_of(sent.backoff),
    )


def _may_see(caller: Caller, entry: HandledType) -> bool:
    return caller.queues is None or entry.queue is None or entry.queue in caller.queues

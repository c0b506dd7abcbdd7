"""``/handlers`` and ``/workers/…``: which types have handlers, where; reloads this node's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType
from twisted.internet.defer import Deferred

from tq_node import errors
from tq_node.api.access.access import Access
from tq_node.api.http.request import ApiRequest
from tq_node.api.query import NoParameters, read_query
from tq_node.api.responses import BackoffOut, seconds
from tq_node.api.routes import Answer, Route
from tq_node.facade import HandlersReloaded, NodeHandlers, TaskQueue
from tq_node.types import HandledType, HandlerKind

_encode = msgspec.json.Encoder().encode


class HandlerDefaults(msgspec.Struct, omit_defaults=True):
    """Arguments of ``@task``, the defaults of tasks of the type; what is not given is left out."""

    queue: str | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    backoff: BackoffOut | UnsetType = UNSET


class HandlerOut(msgspec.Struct):
    """A handler and the nodes that have it; type ``*`` handles every type without a handler. Nodes
    with other defaults, as during a deploy, or that differ in ``simulated``, are another item."""

    type: str
    nodes: list[str]
    simulated: bool
    defaults: HandlerDefaults


class HandlersAnswer(msgspec.Struct):
    """Handlers by type; ``nodes_without`` are the nodes that are up and have no handlers."""

    handlers: list[HandlerOut]
    nodes_without: list[str]


class ReloadDone(msgspec.Struct):
    """``types`` are all that have a handler after the reload."""

    success: bool
    node: str
    types: list[str]
    added: list[str]
    removed: list[str]


class WorkerRoutes:
    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue

    def handlers(self, request: ApiRequest) -> None:
        read_query(request, NoParameters)
        shown = self._queue.handlers()
        without = [one.node for one in shown if one.announced.kind is HandlerKind.NONE]
        request.answer(200, _encode(HandlersAnswer(handlers_out(shown), without)))

    def reload(self, request: ApiRequest) -> Deferred[None]:
        read_query(request, NoParameters)

        def answer(now: HandlersReloaded) -> None:
            request.answer(200, _encode(ReloadDone(True, self._queue.node_name, now.types, now.added, now.removed)))

        return self._queue.reload_handlers().addCallback(answer)

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/handlers",
                Access.LOOK,
                self.handlers,
                "The types that have handlers, where they run, and their defaults",
                {200: Answer("by type", HandlersAnswer)},
                errors=(errors.Upgrading,),
            ),
            Route(
                "POST",
                "/workers/reload",
                Access.OPERATE,
                self.reload,
                "Load the handlers of this node anew, as SIGHUP does",
                {200: Answer("they are loaded", ReloadDone)},
                errors=(errors.HandlersUnusable, errors.NotReady),
            ),
        ]


def handlers_out(shown: Iterable[NodeHandlers]) -> list[HandlerOut]:
    nodes: dict[tuple[HandledType, bool], list[str]] = {}
    for one in shown:
        for handled in one.announced.handled:
            nodes.setdefault((handled, one.announced.kind is HandlerKind.SIMULATED), []).append(one.node)
    ordered = sorted(nodes.items(), key=lambda item: (item[0][0].type, item[1]))
    return [HandlerOut(handled.type, names, simulated, _defaults(handled)) for (handled, simulated), names in ordered]


def _defaults(handled: HandledType) -> HandlerDefaults:
    out = HandlerDefaults()
    if handled.queue is not None:
        out.queue = handled.queue
    if handled.max_attempts is not None:
        out.max_attempts = handled.max_attempts
    if handled.timeout_ms is not None:
        out.timeout = seconds(handled.timeout_ms)
    if (backoff := handled.backoff) is not None:
        out.backoff = BackoffOut(backoff.kind, seconds(backoff.base_ms), seconds(backoff.cap_ms), backoff.jitter)
    return out

"""``/handlers`` and ``/workers/…``: which types have handlers, where; reloads this node's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from twisted.internet.defer import Deferred

from tq_node import errors, limits
from tq_node.api.access.access import Access
from tq_node.api.http.request import ApiRequest
from tq_node.api.query import NoParameters, read_query
from tq_node.api.responses import BackoffOut, defaults_of, time_text
from tq_node.api.routes import Answer, Route
from tq_node.facade import HandlersReloaded, NodeHandlers, TaskQueue, WorkerSeen
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


class WorkerOut(msgspec.Struct, omit_defaults=True):
    """A worker: a node's own, under the node's name, or a remote one. ``types``, ``queues`` null:
    any."""

    worker: str
    node: str
    slots: int
    busy: int
    types: list[str] | None
    queues: list[str] | None
    version: str
    state: str
    last_seen: str | UnsetType = UNSET


class WorkersAnswer(msgspec.Struct):
    workers: list[WorkerOut]


class WorkerDone(msgspec.Struct):
    success: bool
    worker: str
    state: str


class WorkerParameters(msgspec.Struct, forbid_unknown_fields=True):
    worker: Annotated[str, Meta(min_length=1, max_length=limits.WORKER_CHARS_MAX)]


class WorkerRoutes:
    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue

    def workers(self, request: ApiRequest) -> Deferred[None]:
        read_query(request, NoParameters)

        def answer(seen: Sequence[WorkerSeen]) -> None:
            request.answer(200, _encode(WorkersAnswer([_worker_out(one) for one in seen])))

        return self._queue.remote_workers().addCallback(answer)

    def quiet(self, request: ApiRequest) -> Deferred[None]:
        return self._order(request, "quiet")

    def stop(self, request: ApiRequest) -> Deferred[None]:
        return self._order(request, "stop")

    def resume(self, request: ApiRequest) -> Deferred[None]:
        return self._order(request, "run")

    def _order(self, request: ApiRequest, state: str) -> Deferred[None]:
        worker = read_query(request, WorkerParameters).worker
        done = WorkerDone(True, worker, state)
        ordered = self._queue.order_worker(worker, state)
        return ordered.addCallback(lambda _: request.answer(200, _encode(done)))

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
                "GET",
                "/workers",
                Access.LOOK,
                self.workers,
                "The remote workers of the whole cluster",
                {200: Answer("by name", WorkersAnswer)},
                errors=(errors.Upgrading, errors.NotReady),
            ),
            *(
                Route(
                    "POST",
                    f"/workers/{order}",
                    Access.OPERATE,
                    handler,
                    summary,
                    {200: Answer("it will be told", WorkerDone)},
                    query=WorkerParameters,
                    errors=(errors.Upgrading,),
                )
                for order, handler, summary in (
                    ("quiet", self.quiet, "Give a remote worker nothing more; what it runs may end"),
                    ("stop", self.stop, "Have a remote worker end in order"),
                    ("resume", self.resume, "Give a remote worker tasks again"),
                )
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


def _worker_out(seen: WorkerSeen) -> WorkerOut:
    return WorkerOut(
        seen.worker,
        seen.node,
        seen.slots,
        seen.busy,
        None if seen.types is None else list(seen.types),
        None if seen.queues is None else list(seen.queues),
        seen.version,
        seen.state,
        time_text(seen.seen_us) if seen.seen_us else UNSET,
    )


def handlers_out(shown: Iterable[NodeHandlers]) -> list[HandlerOut]:
    nodes: dict[tuple[HandledType, bool], list[str]] = {}
    for one in shown:
        for handled in one.announced.handled:
            nodes.setdefault((handled, one.announced.kind is HandlerKind.SIMULATED), []).append(one.node)
    ordered = sorted(nodes.items(), key=lambda item: (item[0][0].type, item[1]))
    return [
        HandlerOut(handled.type, names, simulated, HandlerDefaults(**defaults_of(handled)))
        for (handled, simulated), names in ordered
    ]

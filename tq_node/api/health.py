"""Health, readiness, metrics, the OpenAPI document, and HTML pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from tq_node.api import html
from tq_node.api.access.access import Access
from tq_node.api.http.request import ApiRequest
from tq_node.api.problems import PROBLEM_KINDS, NoSuchRoute
from tq_node.api.routes import Answer, Route
from tq_node.api.scrapes import Scrapes
from tq_node.api.settings import ApiSettings
from tq_node.facade import NotReadyReason, ReadyNote, TaskQueue
from tq_node.limits import RETRY_AFTER_S
from tq_node.observe.exposition import Exposition, content_type_for

HTML = "text/html; charset=utf-8"
_encode = msgspec.json.Encoder().encode


class Health(msgspec.Struct):
    status: str
    node: str
    version: str


class Readiness(msgspec.Struct):
    """``reasons`` why the node is not ready, empty if it is; ``notes`` don't make it 503."""

    ready: bool
    reasons: list[NotReadyReason]
    notes: list[ReadyNote]


class HealthRoutes:
    """``/health``, ``/ready``, ``/metrics``, ``/openapi.json`` and the HTML pages."""

    def __init__(
        self, queue: TaskQueue, exposition: Exposition, settings: ApiSettings, document: Callable[[str], bytes]
    ) -> None:
        """:param document: makes the answer of ``/openapi.json`` for a version, when asked for."""
        self._queue = queue
        self._scrapes = Scrapes(queue, exposition)
        self._version = settings.version
        self._metrics_access = Access.OPEN if settings.open_metrics else Access.LOOK
        self._document = document

    def health(self, request: ApiRequest) -> None:
        request.answer(200, _encode(Health("ok", self._queue.node_name, self._version)))

    def ready(self, request: ApiRequest) -> None:
        reasons = list(self._queue.not_ready())
        body = _encode(Readiness(not reasons, reasons, list(self._queue.notes())))
        if reasons:
            request.answer(503, body, extra=b"Retry-After: %d\r\n" % RETRY_AFTER_S)
        else:
            request.answer(200, body)

    def metrics(self, request: ApiRequest) -> Deferred[None]:
        content_type = content_type_for((request.getHeader(b"accept") or b"").decode("latin-1"))
        server = request.server
        page = self._scrapes.page(content_type, server.slices, server.reactor)
        return page.addCallback(lambda body: request.answer(200, body, content_type=content_type.encode("ascii")))

    def openapi(self, request: ApiRequest) -> None:
        request.answer(200, self._document(self._version))

    def home(self, request: ApiRequest) -> None:
        cluster = self._queue.cluster() if Access.LOOK in request.caller.may else None
        body = html.home(self._queue.node_name, self._version, cluster, self._queue.not_ready())
        request.answer(200, body, content_type=HTML.encode("ascii"), extra=html.POLICY)

    def problem(self, request: ApiRequest, code: str) -> None:
        kinds = [kind for kind in PROBLEM_KINDS if kind.code == code]
        if not kinds:
            raise NoSuchRoute("there is no such problem")
        request.route = "/problems/{code}"
        request.answer(200, html.problem(code, kinds), content_type=HTML.encode("ascii"), extra=html.POLICY)

    def routes(self) -> list[Route]:
        alive = {200: Answer("the process lives", Health)}
        ready = {200: Answer("it can serve", Readiness), 503: Answer("not yet", Readiness, headers=("Retry-After",))}
        return [
            Route("GET", "/health", Access.OPEN, self.health, "Whether the process lives", alive, open_query=True),
            Route("GET", "/livez", Access.OPEN, self.health, "The same as /health", alive, open_query=True),
            Route("GET", "/ready", Access.OPEN, self.ready, "Whether the node can serve", ready, open_query=True),
            Route("GET", "/readyz", Access.OPEN, self.ready, "The same as /ready", ready, open_query=True),
            Route(
                "GET",
                "/metrics",
                self._metrics_access,
                self.metrics,
                "Prometheus",
                {200: Answer("text format, or OpenMetrics where Accept asks for it", content_type="text/plain")},
                open_query=True,
            ),
            Route(
                "GET",
                "/openapi.json",
                Access.OPEN,
                self.openapi,
                "This description",
                {200: Answer("OpenAPI 3.1", dict[str, Any])},
                open_query=True,
            ),
            Route(
                "GET",
                "/",
                Access.OPEN,
                self.home,
                "A page for people",
                {200: Answer("HTML", content_type="text/html")},
                open_query=True,
            ),
            Route(
                "GET",
                "/problems/<code>",
                Access.OPEN,
                self.problem,
                "What a problem's code means",
                {200: Answer("HTML", content_type="text/html")},
                errors=(NoSuchRoute,),
                open_query=True,
                path_values={"code": {"type": "string", "enum": sorted({kind.code for kind in PROBLEM_KINDS})}},
            ),
        ]

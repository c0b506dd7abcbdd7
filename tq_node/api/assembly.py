"""Builds the HTTP server: ``make_site`` is the one call that the composition root makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import cast

from twisted.internet.interfaces import IReactorTime

from tq_node.api import openapi
from tq_node.api.access.authenticator import Authenticator
from tq_node.api.audit import AuditLog, AuditRoutes
from tq_node.api.cluster import ClusterRoutes
from tq_node.api.events import EventRoutes
from tq_node.api.health import HealthRoutes
from tq_node.api.http.audit_trail import AuditTrail
from tq_node.api.http.routing import Routing
from tq_node.api.http.server_state import ServerState
from tq_node.api.http.site import ApiSite
from tq_node.api.joining import JoinRoutes
from tq_node.api.routes import Route
from tq_node.api.settings import ApiSettings
from tq_node.api.tasks import TaskRoutes
from tq_node.api.tokens import TokenRoutes
from tq_node.api.types import TypeRoutes
from tq_node.api.work import WorkRoutes
from tq_node.api.workers import WorkerRoutes
from tq_node.facade import TaskQueue
from tq_node.observe.exposition import Exposition
from tq_node.observe.metrics import Metrics
from tq_node.slices import Slices

_ALWAYS_SERVED = frozenset({b"/health", b"/livez", b"/ready", b"/readyz", b"/metrics"})


def _wall_us() -> int:
    return time.time_ns() // 1_000


class _Routes:
    def __init__(
        self,
        queue: TaskQueue,
        settings: ApiSettings,
        metrics: Metrics,
        shutdown: Callable[[], None],
        reactor: IReactorTime,
        audit: AuditLog | None,
    ) -> None:
        self.tasks = TaskRoutes(queue, settings, is_audited=audit is not None)
        self.events = EventRoutes(queue, settings, metrics, reactor)
        self.cluster = ClusterRoutes(queue, shutdown)
        self.health = HealthRoutes(queue, Exposition(metrics), settings, _document)
        self.audit = AuditRoutes(queue, audit)
        groups = (
            self.tasks,
            self.events,
            WorkerRoutes(queue),
            WorkRoutes(queue),
            self.cluster,
            self.audit,
            JoinRoutes(queue),
            TypeRoutes(queue),
            TokenRoutes(queue),
            self.health,
        )
        self.routes = [route for group in groups for route in group.routes()]


def make_site(
    queue: TaskQueue,
    settings: ApiSettings,
    metrics: Metrics,
    *,
    shutdown: Callable[[], None],
    reactor: IReactorTime,
    slices: Slices | None = None,
    audit: AuditLog | None = None,
    wall_us: Callable[[], int] = _wall_us,
    now_s: Callable[[], float] = time.time,
) -> ApiSite:
    """The site that serves the whole API, on any number of ports. End it with ``ApiSite.close``.

    :param shutdown: ends this node in order; called for ``POST /cluster/shutdown``.
    :param slices: shared with the queue, if it works in slices.
    :param audit: None: the node keeps no audit log.
    :param wall_us: calendar time in microseconds, for its lines.
    :param now_s: wall clock, by which tokens expire; the reactor's is none."""
    made = _Routes(queue, settings, metrics, shutdown, reactor, audit)
    authenticator = Authenticator(queue.token_table, now_s)
    server = ServerState(settings, metrics, authenticator, reactor, slices)
    server.now_s = now_s
    site = ApiSite(server, Routing(made.routes, _ALWAYS_SERVED, settings, authenticator))
    site.on_close(made.events.close)
    if audit is not None:
        server.audit = AuditTrail(audit, reactor, wall_us)
        site.on_close(server.audit.close)
    metrics.sources.http_connections = lambda: len(server.connections.open)
    metrics.sources.paused_queues = queue.paused_queues
    return site


@cache
def _document(version: str) -> bytes:
    """The OpenAPI document, made once a process, when first asked for: its routes never differ."""
    return openapi.document(documented_routes(), version)


def documented_routes() -> list[Route]:
    """The route table for the OpenAPI document; its handlers can't be called."""
    nothing = cast("TaskQueue", None)
    return _Routes(nothing, ApiSettings(), Metrics(), lambda: None, cast("IReactorTime", None), None).routes

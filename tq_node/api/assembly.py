"""Puts the HTTP side together: the one call that the composition root makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import IReactorTime

from tq_node.api.cluster import ClusterRoutes
from tq_node.api.events import EventRoutes
from tq_node.api.health import ServiceRoutes
from tq_node.api.http.fast_path import FastPath
from tq_node.api.http.request_head import HeadRules, KnownHosts
from tq_node.api.http.site import ApiSite
from tq_node.api.routes import Route, klein_app
from tq_node.api.settings import ApiSettings
from tq_node.api.tasks import TaskRoutes
from tq_node.api.workers import WorkerRoutes
from tq_node.facade import TaskQueue
from tq_node.observe.exposition import Exposition
from tq_node.observe.metrics import Metrics
from tq_node.slices import Slices

_ALWAYS_SERVED = frozenset({b"/health", b"/livez", b"/ready", b"/readyz", b"/metrics"})


class _Rooms:
    def __init__(self, queue: TaskQueue, settings: ApiSettings, metrics: Metrics, shutdown: Callable[[], None]) -> None:
        self.tasks = TaskRoutes(queue, settings)
        self.events = EventRoutes(queue, settings, metrics)
        self.cluster = ClusterRoutes(queue, shutdown)
        self.service = ServiceRoutes(queue, Exposition(metrics), settings.version)
        rooms = (self.tasks, self.events, WorkerRoutes(queue), self.cluster, self.service)
        self.routes = [route for room in rooms for route in room.routes()]


def make_site(
    queue: TaskQueue,
    settings: ApiSettings,
    metrics: Metrics,
    *,
    shutdown: Callable[[], None],
    reactor: IReactorTime,
    slices: Slices | None = None,
) -> ApiSite:
    """The site that serves the whole API; may listen on several ports. End it with ``ApiSite.close``.

    :param slices: those of the rooms below, if there are any.
    :param shutdown: ends this node in order; called when somebody asks for it over HTTP.
    """
    # Here, and not above: `python -m tq_node.api.openapi` would find itself imported already, and Python warns of that.
    from tq_node.api import openapi

    rooms = _Rooms(queue, settings, metrics, shutdown)
    hosts = KnownHosts(settings.host_names)
    rooms.service.describe(openapi.document(rooms.routes, settings.version))
    site = ApiSite(
        klein_app(rooms.routes),
        settings,
        metrics,
        reactor,
        route_names={route.path.encode("ascii"): route.path for route in rooms.routes if "<" not in route.path},
        always_served=_ALWAYS_SERVED,
        heads=HeadRules(hosts, rooms.routes),
        hot=FastPath(
            [route for route in rooms.routes if route.hot and settings.hot_routes_direct],
            settings.body_bytes_max,
            hosts,
        ),
        slices=slices,
    )
    site.on_close(rooms.events.close)
    metrics.sources.http_connections = lambda: len(site.channels)
    metrics.sources.paused_queues = queue.paused_queues
    return site


def documented_routes() -> list[Route]:
    """The table alone, for the document: nothing in it is called."""
    nothing = cast("TaskQueue", None)
    return _Rooms(nothing, ApiSettings(), Metrics(), lambda: None).routes

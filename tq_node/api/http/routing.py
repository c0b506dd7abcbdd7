"""How a request finds its handler, in three steps: rules of the head, the fast path, Klein."""

from __future__ import annotations

from collections.abc import Sequence

from klein.resource import KleinResource

from tq_node.api.http.fast_path import FastPath
from tq_node.api.http.request_head import HeadRules, KnownHosts
from tq_node.api.routes import Route, klein_app
from tq_node.api.settings import ApiSettings


class Routing:
    """The route table of one server, for each of the steps.

    :param always_served: paths that are answered at any number of requests in flight."""

    def __init__(self, routes: Sequence[Route], always_served: frozenset[bytes], settings: ApiSettings) -> None:
        hosts = KnownHosts(settings.host_names)
        self.heads = HeadRules(hosts, routes)
        self.fast_path = FastPath(
            [route for route in routes if route.fast and settings.fast_path], settings.body_bytes_max, hosts
        )
        self.klein: KleinResource = klein_app(routes).resource()
        self.always_served = always_served
        self.names = {route.path.encode("ascii"): route.path for route in routes if "<" not in route.path}
        """Path -> name in the metrics; paths with a variable part have none."""

    def name_of(self, target: bytes) -> str:
        """The name of a target's route in the metrics."""
        return self.names.get(target.partition(b"?")[0], "other")

"""How a request finds its handler: rules of the head, who may, the fast path, Klein."""

from __future__ import annotations

from collections.abc import Sequence

from klein.resource import KleinResource

from tq_node.api.access.access import Access
from tq_node.api.access.authenticator import Authenticator
from tq_node.api.http.fast_path import FastPath
from tq_node.api.http.request_head import PROBLEMS, HeadRules, KnownHosts
from tq_node.api.routes import Route, klein_app
from tq_node.api.settings import ApiSettings


class Routing:
    """The route table of one server, for each of the steps.

    :param always_served: paths that are answered at any number of requests in flight."""

    def __init__(
        self,
        routes: Sequence[Route],
        always_served: frozenset[bytes],
        settings: ApiSettings,
        authenticator: Authenticator,
    ) -> None:
        self._access = {(route.method.encode("ascii"), route.path.encode("ascii")): route.access for route in routes}
        self._access |= {(b"HEAD", path): access for (method, path), access in self._access.items() if method == b"GET"}
        hosts = KnownHosts(settings.host_names)
        self.heads = HeadRules(hosts, routes)
        self.fast_path = FastPath(
            [route for route in routes if route.fast and settings.fast_path],
            settings.body_bytes_max,
            hosts,
            authenticator,
        )
        self.klein: KleinResource = klein_app(routes).resource()
        self.always_served = always_served
        self.names = {route.path.encode("ascii"): route.path for route in routes if "<" not in route.path}
        """Path -> name in the metrics; paths with a variable part have none."""

    def access_of(self, method: bytes, target: bytes) -> Access:
        """What a request asks of its caller; what is no route here is nobody's but the admin's."""
        path = target.partition(b"?")[0]
        if path.startswith(PROBLEMS):
            return Access.OPEN
        return self._access.get((method, path), Access.ADMIN)

    def name_of(self, target: bytes) -> str:
        """The name of a target's route in the metrics."""
        return self.names.get(target.partition(b"?")[0], "other")

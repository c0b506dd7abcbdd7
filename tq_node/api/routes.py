"""The table of routes: what Klein is told, and what ``openapi`` describes, so that the two can't differ."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node.api.http.request import ApiRequest
from tq_node.api.problems import answer_failure
from tq_node.api.query import NoParameters
from tq_node.errors import TaskQueueError

Handler = Callable[..., "Deferred[None] | Coroutine[Any, Any, None] | None"]
"""Takes the request, and what the path says. Calls ``request.answer``, now or before its Deferred fires; errors may be raised or
left to the Deferred."""


class Answer(msgspec.Struct, frozen=True):
    """One way a route may answer well. ``body`` is a struct, or None for what is not JSON."""

    text: str
    body: Any = None
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """``bodies``: content type of the request -> struct. ``errors``: what it may be refused with, besides what any may.

    ``open_query``: parameters are not looked at (probes and scrapers add their own).
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: dict[int, Answer]
    query: type[msgspec.Struct] = NoParameters
    bodies: dict[str, Any] = {}
    errors: tuple[type[TaskQueueError], ...] = ()
    headers: dict[str, dict[str, Any]] = {}
    """Request headers that mean something here, each with its JSON Schema."""
    path_values: dict[str, dict[str, Any]] = {}
    """The same for what the path holds."""
    open_query: bool = False
    hot: bool = False
    """Worth a way in of its own, see ``ApiSettings.hot_routes_direct``."""


def klein_app(routes: Sequence[Route]) -> Klein:
    """A Klein that knows these routes and answers every error by ``failures``."""
    app = Klein()
    # Werkzeug would answer a doubled slash with a redirect, in HTML.
    app.url_map.merge_slashes = False
    for route in routes:
        app.route(route.path, methods=[route.method], endpoint=f"{route.method} {route.path}")(route.handler)

    def failed(request: ApiRequest, failure: Failure) -> None:
        answer_failure(request, failure)

    app.handle_errors(Exception)(failed)  # type: ignore[arg-type]  # Klein says IRequest; the site makes ours
    return app

"""The routes, for Klein and the fast path; ``openapi`` describes them, so they can't differ."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node.api.access.access import Access
from tq_node.api.http.exchange import Exchange
from tq_node.api.problems import answer_failure
from tq_node.api.query import NoParameters
from tq_node.errors import TaskQueueError

Handler = Callable[..., "Deferred[None] | Coroutine[Any, Any, None] | None"]
"""Takes the request, and the variable parts of the path. Calls ``request.answer`` at once, or
before its Deferred fires. An error may be raised, or left to the Deferred."""


class Answer(msgspec.Struct, frozen=True):
    """One successful answer of a route."""

    text: str
    """Its description in the OpenAPI document."""
    body: Any = None
    """The struct that is sent; None: not JSON."""
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """One method of one path."""

    method: str
    path: str
    access: Access
    """What it asks of its caller."""
    handler: Handler
    summary: str
    answers: dict[int, Answer]
    query: type[msgspec.Struct] = NoParameters
    bodies: dict[str, Any] = {}
    """Content type of the request -> the struct of its body."""
    errors: tuple[type[TaskQueueError], ...] = ()
    """What it may be refused with, besides what any request may."""
    headers: dict[str, dict[str, Any]] = {}
    """Request headers that the route reads, each with its JSON Schema."""
    path_values: dict[str, dict[str, Any]] = {}
    """Variable parts of the path, each with its JSON Schema."""
    open_query: bool = False
    """Parameters are not read: probes and scrapers add some of theirs."""
    fast: bool = False
    """Called so often that ``FastPath`` serves it (``ApiSettings.fast_path``)."""


def klein_app(routes: Sequence[Route]) -> Klein:
    """A Klein app with these routes; ``answer_failure`` answers every error."""
    handlers = _Handlers({(route.method, route.path): route.handler for route in routes})
    return _unbound_app(tuple(handlers.of)).__get__(handlers, _Handlers)


class _Handlers:
    """The instance that Klein binds an app to: one server's handlers by method and path."""

    def __init__(self, of: dict[tuple[str, str], Handler]) -> None:
        self.of = of


@cache
def _unbound_app(names: tuple[tuple[str, str], ...]) -> Klein:
    """Compile the rules, some 10 ms, once a process: every server with these routes shares them."""
    app = Klein()
    # Werkzeug would answer a doubled slash with a redirect, in HTML.
    app.url_map.merge_slashes = False

    def add(method: str, path: str) -> None:
        @app.route(path, methods=[method], endpoint=f"{method} {path}")
        def handle(handlers: _Handlers, request: Exchange, **values: str) -> Any:
            return handlers.of[method, path](request, **values)

    for method, path in names:
        add(method, path)

    def failed(_: _Handlers, request: Exchange, failure: Failure) -> None:
        answer_failure(request, failure)

    app.handle_errors(Exception)(failed)  # type: ignore[arg-type]  # Klein says IRequest; the site makes ours
    return app

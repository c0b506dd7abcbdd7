"""``/health`` and ``/metrics`` of a ``tq-worker``, for supervisors and Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.resource import Resource
from twisted.web.server import Request, Site

Numbers = Callable[[], dict[str, tuple[str, str, float]]]
"""By name of the metric: its kind, what it is, its value."""


class _Health(Resource):
    isLeaf = True

    def __init__(self, is_well: Callable[[], bool]) -> None:
        super().__init__()
        self._is_well = is_well

    def render_GET(self, request: Request) -> bytes:
        is_well = self._is_well()
        request.setResponseCode(200 if is_well else 503)
        request.setHeader(b"content-type", b"application/json")
        return b'{"status":"%b"}' % (b"ok" if is_well else b"unconnected")


class _Metrics(Resource):
    isLeaf = True

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self._numbers = numbers

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        lines = []
        for name, (kind, text, value) in self._numbers().items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value:g}"]
        return ("\n".join(lines) + "\n").encode()


class StatusSite(Site):
    """:param is_well: a node answers. :param numbers: for ``/metrics``."""

    noisy = False

    def __init__(self, is_well: Callable[[], bool], numbers: Numbers) -> None:
        root = Resource()
        for path in (b"health", b"livez", b"ready"):
            root.putChild(path, _Health((lambda: True) if path == b"livez" else is_well))
        root.putChild(b"metrics", _Metrics(numbers))
        super().__init__(root)

    def log(self, request: object) -> None:
        """No access log."""

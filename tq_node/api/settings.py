"""Settings of the HTTP server, made by the composition root."""

from __future__ import annotations

import msgspec

from tq_node import limits


class ApiSettings(msgspec.Struct, frozen=True):
    """Bounds as in ``limits``, unless an option changes them. Times in seconds, sizes in bytes."""

    version: str = "0"
    body_bytes_max: int = limits.BODY_BYTES_MAX
    payload_bytes_max: int = limits.PAYLOAD_BYTES_MAX
    bodies_held_bytes_max: int = 4 * limits.BODY_BYTES_MAX
    """Bound of all bodies being received or whose request is not answered; past it: 429."""
    connections_max: int = limits.HTTP_CONNECTIONS_MAX
    connections_of_address_max: int = limits.HTTP_CONNECTIONS_OF_ADDRESS_MAX
    requests_in_flight_max: int = limits.REQUESTS_IN_FLIGHT_MAX
    waiting_requests_max: int = limits.STATUS_WAITERS_MAX
    event_clients_max: int = limits.EVENT_CLIENTS_MAX
    event_clients_of_address_max: int = limits.EVENT_CLIENTS_OF_ADDRESS_MAX
    event_backlog_max: int = limits.EVENT_CLIENT_BACKLOG_MAX
    event_comment_s: float = limits.EVENT_COMMENT_S
    idle_s: float = limits.HTTP_IDLE_S
    linger_s: float = 5.0
    """How long a refused body is still read and discarded, so that its sender sees the answer."""
    host_names: frozenset[str] | None = frozenset({"localhost"})
    """Host names that requests may use, besides any IP address; None: any name."""
    redact: tuple[str, ...] = ()
    """Names of fields whose values lists don't show, or patterns."""
    open_metrics: bool = False
    """``/metrics`` asks nothing of its caller."""
    fast_path: bool = True
    """Call handlers of the fast routes without Klein, and without a ``twisted.web`` Request where
    the request is plain (``http.fast_path``). Answers are the same, at a fifth of the cost."""


def connections_max(descriptors: int) -> int:
    """How many connections of clients fit in a process's bound of open files."""
    fit = int((descriptors - limits.DESCRIPTORS_KEPT) / limits.DESCRIPTORS_PER_CONNECTION)
    return max(limits.HTTP_PROBES_MAX, min(limits.HTTP_CONNECTIONS_MAX, fit))

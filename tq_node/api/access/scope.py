"""Which tasks and queues a caller may know of: pure."""

from __future__ import annotations

from collections.abc import Iterable

from tq_node.api.access.access import Caller
from tq_node.errors import Denied

_NAMED_MAX = 5
"""So many of its queues a refusal lists."""


def must_be_its_queue(caller: Caller, queue: str) -> None:
    """Check that the caller may use a queue; raises ``Denied``, which lists those that it may."""
    if caller.queues is not None and queue not in caller.queues:
        raise Denied(f"the token {caller.name} is for {_listed(caller.queues)}, not for queue {queue!r}")


def must_be_for_all_queues(caller: Caller, what: str) -> None:
    """Check that the caller may know of every queue, which ``what`` tells of; raises ``Denied``."""
    if caller.queues is not None:
        raise Denied(f"{what} tells of all queues; the token {caller.name} is for {_listed(caller.queues)}")


def narrowed(caller: Caller, queues: frozenset[str] | None, inverse: bool) -> tuple[frozenset[str] | None, bool]:
    """A filter of queues, cut down to those that the caller may know of.

    :param inverse: the filter takes all others; so in what is returned."""
    own = caller.queues
    if own is None:
        return queues, inverse
    if queues is None:
        return own, False
    return (own - queues if inverse else own & queues), False


def its_queues(caller: Caller, queues: Iterable[str]) -> list[str]:
    """Those that the caller may know of."""
    return [queue for queue in queues if caller.queues is None or queue in caller.queues]


def _listed(queues: frozenset[str]) -> str:
    if not queues:
        return "no queue"
    named = ", ".join(map(repr, sorted(queues)[:_NAMED_MAX]))
    more = len(queues) - _NAMED_MAX
    return f"queues {named} and {more} more" if more > 0 else f"queue{'s' * (len(queues) > 1)} {named}"

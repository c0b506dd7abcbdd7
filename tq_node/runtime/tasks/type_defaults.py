"""The defaults of a task type: as operators set them, or as whoever has a handler declares them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tq_node.cluster.handlers import ANY
from tq_node.facade import TypeDefaults
from tq_node.types import HandledType

_NONE = TypeDefaults()


class TypeDefaultsTable:
    """Looked up at each submit, so it is worked out whenever something of it changes. Field by
    field, what operators put goes before what is declared. Of those who declare, one counts as a
    whole: this node's handlers, those of other nodes in order of names, then remote workers'; who
    has a handler without any default says nothing. A handler for any type counts only where nobody
    has one for the type."""

    def __init__(self) -> None:
        self._of: dict[str, TypeDefaults] = {}
        self._any = _NONE
        self._queues: frozenset[str] = frozenset()
        self._seen: object = None

    def of(self, task_type: str) -> TypeDefaults:
        return self._of.get(task_type, self._any)

    @property
    def queues(self) -> frozenset[str]:
        """Queues that operators or this node's handlers name."""
        return self._queues

    def follow(
        self,
        put: tuple[HandledType, ...],
        own: tuple[HandledType, ...],
        others: Sequence[tuple[HandledType, ...]],
        workers: tuple[HandledType, ...],
    ) -> None:
        """:param put: by operators.
        :param own: of this node's handlers.
        :param others: of other nodes' handlers, in order of their names.
        :param workers: announced by remote workers."""
        seen = (put, own, others, workers)
        if seen == self._seen:
            return
        self._seen = seen
        declared: dict[str, TypeDefaults] = {}
        for handled in (one for layer in (own, *others, workers) for one in layer):
            if declared.get(handled.type, _NONE) == _NONE:
                declared[handled.type] = _defaults(handled)
        self._any = declared.pop(ANY, _NONE)
        self._of = declared
        for handled in put:
            self._of[handled.type] = _over(_defaults(handled), declared.get(handled.type, self._any))
        self._queues = _queues(put) | _queues(own)


def _defaults(handled: HandledType) -> TypeDefaults:
    return TypeDefaults(handled.queue, handled.max_attempts, handled.timeout_ms, handled.backoff)


def _over(upper: TypeDefaults, lower: TypeDefaults) -> TypeDefaults:
    given = {name: value for name, value in msgspec.structs.asdict(upper).items() if value is not None}
    return msgspec.structs.replace(lower, **given)


def _queues(types: Iterable[HandledType]) -> frozenset[str]:
    return frozenset(one.queue for one in types if one.queue is not None)

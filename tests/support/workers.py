"""What every stand-in for the worker service answers alike: it takes any type, and has no more to say."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tq_node.facade import HandlersReloaded, ReadyNote
from tq_node.types import Announced, HandledType, HandlerKind


class AnyType:
    """The part of ``facade.Worker`` that is about handlers."""

    types: tuple[str, ...] | None = None
    notes: tuple[ReadyNote, ...] = ()
    announced = Announced(HandlerKind.OWN, (HandledType("*"),))

    def stand_in(self, may: bool) -> None:
        """It has handlers of its own."""

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        raise NotImplementedError

"""Which handler runs a task, and what its ``@task`` says for tasks that say nothing themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tq_node.facade import TypeDefaults
from tq_node.work.handlers import WILDCARD, Handler
from tq_node.work.loading import load_handlers

SIMULATED = "tq_node.work.simulated"
"""The module that is loaded when no other is named."""


class Registry:
    """Type to handler; fixed once made."""

    def __init__(self, handlers: Mapping[str, Handler], modules: Sequence[str]) -> None:
        self.modules = tuple(modules)
        """What a worker process loads to have the same handlers."""
        self._handlers = dict(handlers)
        self._wildcard = self._handlers.get(WILDCARD)
        self._defaults = {
            handler.type: TypeDefaults(handler.queue, handler.max_attempts, handler.timeout_ms, handler.backoff)
            for handler in self._handlers.values()
        }
        self._wildcard_defaults = self._defaults.get(WILDCARD, TypeDefaults())

    @classmethod
    def load(cls, modules: Sequence[str] = ()) -> Registry:
        """Import ``modules`` (dotted names, also from the working directory); none: the simulated handlers.

        :raises HandlerError: one line that names the module or the type and what is wrong.
        """
        names = tuple(modules) or (SIMULATED,)
        return cls(load_handlers(names), names)

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(sorted(self._handlers))

    @property
    def takes(self) -> tuple[str, ...] | None:
        """The types that ``resolve`` finds a handler for; None: any, since there is one for ``"*"``."""
        return None if self._wildcard is not None else self.types

    @property
    def needs_processes(self) -> bool:
        """Whether any handler is a ``def``."""
        return any(not handler.is_async for handler in self._handlers.values())

    def resolve(self, task_type: str) -> Handler | None:
        return self._handlers.get(task_type, self._wildcard)

    def queues(self) -> frozenset[str]:
        """Those that ``@task`` names."""
        return frozenset(handler.queue for handler in self._handlers.values() if handler.queue is not None)

    def defaults(self, task_type: str) -> TypeDefaults:
        """What ``@task`` of the type, or else of ``"*"``, says."""
        return self._defaults.get(task_type, self._wildcard_defaults)

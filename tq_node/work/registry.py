"""Which handler runs a task, and what its ``@task`` says for tasks that say nothing themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import msgspec

from tq_node import limits
from tq_node.types import Announced, HandledType, HandlerKind
from tq_node.work import handlers
from tq_node.work.handler_modules import load_handlers
from tq_node.work.handlers import WILDCARD, Handler, HandlerError, RunIn

SIMULATED = "tq_node.work.simulated"
"""What ``--handlers simulated`` names; it stands in where none is named and that is no harm."""
_ALIASES = {"simulated": SIMULATED}
_OURS = "tq_node"
_NOTHING = Announced(HandlerKind.NONE)


class Loaded(NamedTuple):
    """Handlers by type, and what this node announces of them to the others."""

    handlers: Mapping[str, Handler]
    announced: Announced


class Registry:
    """The handlers in use; ``take`` replaces them.

    :param is_standing_by: nobody asked for these handlers: they run tasks only while ``stand_in``
        says so.
    :raises HandlerError: too many types for the other nodes to be told of."""

    def __init__(self, found: Mapping[str, Handler], modules: Sequence[str], *, is_standing_by: bool = False) -> None:
        self.modules = tuple(modules)
        """Modules that a worker process loads to have these handlers."""
        self.is_standing_by = is_standing_by
        self._stands_in = not is_standing_by
        self.take(self._loaded(found))

    @classmethod
    def load(cls, modules: Sequence[str] = (), *, may_simulate: bool = True) -> Registry:
        """Import ``modules`` (dotted names, also from the working directory; ``simulated``: the
        simulated handlers).

        :param may_simulate: where none is named the simulated ones stand by; else there are none at
            all.
        :raises HandlerError: one line that names the module or the type and what is wrong."""
        if not modules:
            names: tuple[str, ...] = (SIMULATED,) if may_simulate else ()
            return cls(load_handlers(names), names, is_standing_by=may_simulate)
        names = tuple(dict.fromkeys(_ALIASES.get(name, name) for name in modules))
        return cls(load_handlers(names), names)

    def take(self, loaded: Loaded) -> None:
        """Use these handlers from now on."""
        self._handlers = dict(loaded.handlers)
        self._announced = loaded.announced
        self._wildcard = self._handlers.get(WILDCARD)

    def _loaded(self, found: Mapping[str, Handler]) -> Loaded:
        """The handlers found, with their announcement; raises ``HandlerError``: too many."""
        if not found:
            return Loaded(found, _NOTHING)
        kind = HandlerKind.SIMULATED if set(self.modules) == {SIMULATED} else HandlerKind.OWN
        announced = Announced(
            kind,
            tuple(
                HandledType(one.type, one.queue, one.max_attempts, one.timeout_ms, one.backoff)
                for _, one in sorted(found.items())
            ),
        )
        if len(found) > limits.HANDLED_TYPES_MAX:
            raise HandlerError(f"{len(found)} types have handlers; at most {limits.HANDLED_TYPES_MAX} may")
        if len(msgspec.msgpack.encode(announced)) > limits.HANDLED_BYTES_MAX:
            raise HandlerError(
                f"types and defaults of all handlers take more than {limits.HANDLED_BYTES_MAX} bytes: shorten their names"
            )
        return Loaded(found, announced)

    # --- which handlers run tasks ---
    @property
    def types(self) -> tuple[str, ...]:
        return tuple(sorted(self._handlers))

    @property
    def takes(self) -> tuple[str, ...] | None:
        """The types that ``resolve`` finds a handler for; None: any, by the one for ``"*"``."""
        if not self._stands_in:
            return ()
        return None if self._wildcard is not None else self.types

    @property
    def announced(self) -> Announced:
        """What this node announces to the others."""
        return self._announced if self._stands_in else _NOTHING

    def has(self, run: RunIn) -> bool:
        """Whether any handler runs there."""
        return any(handler.run is run for handler in self._handlers.values())

    @property
    def needs_processes(self) -> bool:
        """Whether any handler runs in a worker process."""
        return self.has(RunIn.PROCESS) or self.has(RunIn.ASYNCIO)

    def resolve(self, task_type: str) -> Handler | None:
        return self._handlers.get(task_type, self._wildcard) if self._stands_in else None

    def declared(self) -> tuple[HandledType, ...]:
        """All types with what their ``@task`` declares, also of handlers that only stand by."""
        return self._announced.handled

    def stand_in(self, may: bool) -> bool:
        """Let the stand-in handlers run tasks, or not. Returns whether that changes anything."""
        changes = self.is_standing_by and self._stands_in is not may
        if changes:
            self._stands_in = may
        return changes

    def load_anew(self) -> Loaded:
        """Import the modules anew, with all of the packages that they and their handlers belong to;
        ``take`` uses what was found.

        Touches nothing of this registry, so it may run in a thread; not beside another one. Takes
        as long as the modules take.

        :raises HandlerError: one line; the modules are those of before."""
        homes = (getattr(handler.function, "__module__", "") for handler in self._handlers.values())
        with _imported_anew((*self.modules, *homes)):
            return self._loaded(load_handlers(self.modules))


@contextmanager
def _imported_anew(names: Sequence[str]) -> Iterator[None]:
    """A context that imports these modules and their packages anew; a failure restores all."""
    packages = {name.partition(".")[0] for name in names} - {_OURS}

    def present() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}

    modules, declared = present(), list(handlers.declared)
    for name in modules:
        del sys.modules[name]
    handlers.declared[:] = [one for one in declared if getattr(one.function, "__module__", "") not in modules]
    try:
        yield
    except BaseException:
        for name in present():
            del sys.modules[name]
        sys.modules.update(modules)
        handlers.declared[:] = declared
        raise

"""Loading a node's handlers anew while it runs: in a thread, one at a time, and the old ones go on where it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import HandlersUnusable
from tq_node.facade import HandlersReloaded
from tq_node.work.handlers import HandlerError
from tq_node.work.registry import Loaded, Registry

_log = Logger()
_NAMED_MAX = 20
"""Types that a line of the log names."""


class HandlerReload:
    """:param on_taken: the registry has other handlers now."""

    def __init__(
        self,
        registry: Registry,
        on_taken: Callable[[], None],
        in_thread: Callable[[Callable[[], Loaded]], Deferred[Loaded]] = deferToThread,
    ) -> None:
        self._registry = registry
        self._on_taken = on_taken
        self._in_thread = in_thread
        self._waiting: list[Deferred[HandlersReloaded]] | None = None
        """Who else waits for the reload that is under way."""

    def reload(self) -> Deferred[HandlersReloaded]:
        """See ``facade.TaskQueue.reload_handlers``. Importing takes as long as the modules take; the node goes on meanwhile."""
        if self._waiting is not None:
            done: Deferred[HandlersReloaded] = Deferred()
            self._waiting.append(done)
            return done
        self._waiting = []
        return (
            self._in_thread(self._registry.load_anew).addCallback(self._taken).addErrback(_refused).addBoth(self._over)
        )

    def _taken(self, loaded: Loaded) -> HandlersReloaded:
        before, after = set(self._registry.types), set(loaded.handlers)
        self._registry.take(loaded)
        self._on_taken()
        told = HandlersReloaded(sorted(after), sorted(after - before), sorted(before - after))
        _log.info(
            "handlers were loaded anew: {count} types; new: {added}; gone: {removed}",
            count=len(after), added=_named(told.added), removed=_named(told.removed), event="handlers_reloaded",
        )  # fmt: skip
        return told

    def _over(self, result: Any) -> Any:
        waiting, self._waiting = self._waiting or [], None
        for done in waiting:
            done.callback(result)
        return result


def _refused(why: Failure) -> Failure:
    if not why.check(HandlerError):
        _log.failure("a bug in loading handlers", failure=why, event="worker_bug")
    _log.error(
        "handlers could not be loaded anew, and those of before go on: {why}",
        why=why.getErrorMessage(), event="handlers_not_reloaded",
    )  # fmt: skip
    return Failure(HandlersUnusable(why.getErrorMessage()))


def _named(types: Sequence[str]) -> str:
    """Not too many of them, for a line of the log."""
    shown = ", ".join(types[:_NAMED_MAX])
    return f"{shown} and {len(types) - _NAMED_MAX} more" if len(types) > _NAMED_MAX else shown or "none"

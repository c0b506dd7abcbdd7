"""Reloads a node's handlers in a thread, one reload at a time; if it fails the old ones stay."""

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
"""Most types that a line of the log names."""


class HandlerReload:
    """Runs reloads; calls ``on_taken`` when the registry has new handlers."""

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
        """Further callers that wait for the reload under way; None: there is none."""

    def reload(self) -> Deferred[HandlersReloaded]:
        """See ``facade.TaskQueue.reload_handlers``. The node goes on while modules are imported."""
        if self._waiting is not None:
            done: Deferred[HandlersReloaded] = Deferred()
            self._waiting.append(done)
            return done
        self._waiting = []
        return (
            self._in_thread(self._registry.load_anew)
            .addCallback(self._taken)
            .addErrback(_refused)
            .addBoth(self._answer_waiting)
        )

    def _taken(self, loaded: Loaded) -> HandlersReloaded:
        before, after = set(self._registry.types), set(loaded.handlers)
        self._registry.take(loaded)
        self._on_taken()
        reloaded = HandlersReloaded(sorted(after), sorted(after - before), sorted(before - after))
        _log.info(
            "handlers were loaded anew: {count} types; new: {added}; gone: {removed}",
            count=len(after), added=_named(reloaded.added), removed=_named(reloaded.removed), event="handlers_reloaded",
        )  # fmt: skip
        return reloaded

    def _answer_waiting(self, result: Any) -> Any:
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
    """At most ``_NAMED_MAX`` of the types, for a line of the log."""
    shown = ", ".join(types[:_NAMED_MAX])
    return f"{shown} and {len(types) - _NAMED_MAX} more" if len(types) > _NAMED_MAX else shown or "none"

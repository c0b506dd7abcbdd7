"""Files that are read again while the node runs: certificates, keys, secrets, tokens.

``RereadFiles`` looks at them every ``limits.REREAD_S``, so that what has changed counts within two
of these. Files that can't be used change nothing: what was read before goes on to count, and the
log and ``trouble`` say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node import limits
from tq_node.beats import until_beat
from tq_node.observe.log import EventLog

T = TypeVar("T")
_log = EventLog("taskqueue.files")
_States = tuple[tuple[int, ...] | None, ...]


class RereadFiles(Generic[T]):
    """What ``read`` made of ``paths`` when they last could be used.

    Files that belong together are replaced one after the other, so a first failure is not said: the
    look after it may find them whole.

    :param read: reads them all; raises ``ValueError`` or ``OSError`` if they can't be used, here at
        once.
    :param what: their name in the log: ``--http-cert``."""

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self.what = what
        self._paths = paths
        self._read = read
        self._used = self._states()  # taken before they are read: what changes meanwhile is seen
        self._failed: _States | None = None
        self._timer: IDelayedCall | None = None
        self.value = read()
        self.trouble: str | None = None
        """Why the files can't be used as they are now. None: ``value`` is what they say."""
        self.on_change: list[Callable[[T], object]] = []
        """Called with each new value."""

    def watch(self, reactor: IReactorTime) -> None:
        """Look at the files from now on, until ``stop``."""

        def look() -> None:
            self.look()
            self.watch(reactor)

        self._timer = reactor.callLater(until_beat(reactor, limits.REREAD_S), look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Read the files if they have changed, or could not be used last time."""
        states = self._states()
        if states == self._used:
            self._failed = self.trouble = None
            return
        try:
            value = self._read()
        except (OSError, ValueError) as why:
            if states == self._failed:
                self._say(" ".join(str(why).split()))
            self._failed = states
            return
        self._used = states
        self._failed = self.trouble = None
        self.value = value
        _log.info("files_reread", "{what}: the changed file counts from now on", what=self.what)
        for call in self.on_change:
            call(value)

    def _say(self, why: str) -> None:
        if why != self.trouble:
            self.trouble = why
            _log.warn(
                "files_unusable", "{what}: the changed file is not used, the earlier one is: {why}",
                what=self.what, why=why,
            )  # fmt: skip

    def _states(self) -> _States:
        return tuple(_state(path) for path in self._paths)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes with each change of a file; of a link's target, where it is a link."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns, found.st_ctime_ns

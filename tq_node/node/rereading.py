"""The files that a node reads again while it runs, and what ``/ready`` says of those it can't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from tq_node.facade import ReadyNote


class Reread(Protocol):
    """A ``RereadFiles`` of whatever kind."""

    what: str
    trouble: str | None

    def watch(self, reactor: IReactorTime) -> None:
        """Look at the files from now on."""

    def stop(self) -> None:
        """Look no more."""


class Rereading:
    """Those of one node, from ``start`` to ``stop``.

    :param standing: what ``/ready`` says for as long as the node runs."""

    def __init__(self, standing: Sequence[ReadyNote] = ()) -> None:
        self.standing = standing
        self._files: list[Reread] = []

    def add(self, files: Reread) -> None:
        """Before ``start``."""
        self._files.append(files)

    def start(self, reactor: IReactorTime) -> None:
        for files in self._files:
            files.watch(reactor)

    def stop(self) -> None:
        for files in self._files:
            files.stop()

    def notes(self) -> Sequence[ReadyNote]:
        """What stands, and which changed files can't be used."""
        return (
            *self.standing,
            *(
                ReadyNote(
                    "files_unusable", f"{files.what}: the changed file is not used, the earlier one is: {files.trouble}"
                )
                for files in self._files
                if files.trouble is not None
            ),
        )

"""What a worker process is to others, and they to it: the phases of its life, the attempts that it was given, its pool."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from tq_node.facade import Outcome
from tq_node.work import protocol

if TYPE_CHECKING:
    from tq_node.work.process import WorkerProcess


class Phase(enum.Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"
    """It gets no further task: it was asked to end, or killed."""
    DEAD = "dead"


class Running(Protocol):
    """An attempt that a worker process was given."""

    def begun(self) -> None:
        """All that it was given before has ended."""

    def said(self, said: protocol.Said) -> None: ...

    def printed(self, lines: list[str]) -> None: ...

    def reported(self, outcome: Outcome) -> None: ...

    def not_begun(self) -> None:
        """It was taken back, or the process died before it had taken it: the handler has not run and will not."""

    def died(self, outcome: Outcome) -> None:
        """The process is gone; ``outcome`` says how, unless it was decided before."""


class Owner(Protocol):
    """The pool."""

    def process_ready(self, process: WorkerProcess) -> None:
        """It can take a task, for the first time or again."""

    def process_goes_on(self, process: WorkerProcess) -> None:
        """Some of what it was given has ended, and not all."""

    def process_ran(self, process: WorkerProcess, seconds: float) -> None:
        """A task took so long in it."""

    def process_leaving(self, process: WorkerProcess) -> None:
        """It is being killed and can take no task."""

    def process_dead(self, process: WorkerProcess, why: str, *, started: bool, idle: bool) -> None:
        """It is gone. ``started``: it had said that it was ready; ``idle``: it ran no task."""

    def process_closed(self, process: WorkerProcess) -> None:
        """Its pipes are closed too: nothing is left of it."""

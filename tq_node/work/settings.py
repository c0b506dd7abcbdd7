"""What an operator sets of a node's worker."""

from __future__ import annotations

import msgspec

from tq_node import limits
from tq_node.work.process_environment import ProcessEnvironment


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of a ``WorkerService``."""

    concurrency: int = limits.CONCURRENCY_DEFAULT
    """The most attempts that run at once."""
    stop_timeout_s: float = limits.STOP_TIMEOUT_S
    """How long handlers may go on once the node stops."""
    echo: bool = False
    """Write what handlers print and log to the node's log too."""
    environment: ProcessEnvironment = ProcessEnvironment()

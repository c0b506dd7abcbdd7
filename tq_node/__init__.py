"""taskqueue: a distributed task queue.

What a module with task handlers imports from here: ``task``, ``Context``, ``Retry``, ``Reject``.
It stays light (no Twisted, no Klein): every worker process imports it before its first task."""

from tq_node.functions import TaskFunction, task
from tq_node.work.handlers import Context, Reject, Retry

__all__ = ["Context", "Reject", "Retry", "TaskFunction", "task"]

"""The client: submit tasks and follow them, from threads (``Queue``) or asyncio (``AsyncQueue``).

    from tq_node.client import Queue

    with Queue("localhost:8080,8081,8082") as queue:
        task = queue.submit("email", "ann@example.com")
        print(task.result(timeout=30))

``Engine`` has every operation as a coroutine; ``Roster`` picks the node; ``Batcher`` batches.

- Every task has an id before it is sent, so that sending it again never makes a second task.
- A call ends within its deadline, with an answer or an error of one of three kinds (``errors``).
- What waits in the client is bounded in number and in bytes.

It imports nothing of the node, only the standard library and msgspec."""

from tq_node.client.addresses import BadAddress
from tq_node.client.asynchronous import AsyncQueue, AsyncTask
from tq_node.client.codec import Codec, Undecoded
from tq_node.client.default import configure
from tq_node.client.errors import (
    AlreadyFinal,
    BatchRefused,
    Busy,
    Closed,
    Conflict,
    Denied,
    IdConflict,
    IdTooOld,
    Incomplete,
    InvalidTask,
    NoResult,
    NotDecoded,
    NotFinal,
    NotFinished,
    NotFound,
    NotRetryable,
    NotUnderstood,
    OutcomeUnknown,
    Refused,
    TaskCancelled,
    TaskFailed,
    TaskPurged,
    TaskQueueError,
    TooManyWaiting,
    Unavailable,
    Unreachable,
)
from tq_node.client.models import Attempt, Backoff, Failure, LogLine, NewTask, Progress, Stats, TaskInfo, WaitsFor
from tq_node.client.synchronous import Queue, Task

__all__ = [
    "AlreadyFinal",
    "AsyncQueue",
    "AsyncTask",
    "Attempt",
    "Backoff",
    "BadAddress",
    "BatchRefused",
    "Busy",
    "Closed",
    "Codec",
    "Conflict",
    "Denied",
    "Failure",
    "IdConflict",
    "IdTooOld",
    "Incomplete",
    "InvalidTask",
    "LogLine",
    "NewTask",
    "NoResult",
    "NotDecoded",
    "NotFinal",
    "NotFinished",
    "NotFound",
    "NotRetryable",
    "NotUnderstood",
    "OutcomeUnknown",
    "Progress",
    "Queue",
    "Refused",
    "Stats",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskInfo",
    "TaskPurged",
    "TaskQueueError",
    "TooManyWaiting",
    "Unavailable",
    "Undecoded",
    "Unreachable",
    "WaitsFor",
    "configure",
]

"""What a user puts between the client and the cluster: payloads and results as the nodes keep them.

Nodes see, store and replicate what ``encode`` returns and nothing else of a payload. The handler,
which runs at a node, does the same the other way round with the same codec."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from tq_node.client.models import TaskInfo

SHOWN_CHARS_MAX = 200


class Codec(Protocol):
    """Turns values of JSON into others, such as encrypted ones. Called in several threads, and in
    that of the event loop, so it must neither wait nor take long.

    ``place`` is ``payload/ID`` or ``result/ID`` with the task's id: what is bound to it can't be
    put in the place of another task's."""

    def encode(self, value: Any, place: str) -> Any:
        """What is sent for a payload; called once a submit. What it raises, the submit raises."""
        ...

    def decode(self, value: Any, place: str) -> Any:
        """The payload or result that ``encode`` was given. Raises whatever it likes for others."""
        ...


class Undecoded(msgspec.Struct, frozen=True):
    """Stands for a payload or result that the codec could not decode: nobody vouches for it."""

    value: Any
    """As the node sent it."""
    why: str
    """What the codec raised."""


def place_of(part: str, task_id: str) -> str:
    """Where a value belongs. ``part``: ``payload`` or ``result``."""
    return f"{part}/{task_id}"


def decoded(codec: Codec | None, task: TaskInfo) -> TaskInfo:
    """The task with its payload and result decoded. What is null stays null: a task without a
    result, or without a payload that its reader may see."""
    if codec is None:
        return task
    return msgspec.structs.replace(
        task,
        payload=_value(codec, task.payload, "payload", task.id),
        result=_value(codec, task.result, "result", task.id),
    )


def _value(codec: Codec, value: Any, part: str, task_id: str) -> Any:
    if value is None:
        return None
    try:
        return codec.decode(value, place_of(part, task_id))
    except Exception as why:  # a codec of the user's may raise anything
        return Undecoded(value, f"{type(why).__name__}: {why}"[:SHOWN_CHARS_MAX])

"""Ids that a node makes: ``task-<uuid7>``, sortable by the time they were made (RFC 9562, section 5.7)."""

from __future__ import annotations

import re
from collections.abc import Callable

_MADE = re.compile(r"task-([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


_POOL_BYTES = 4_096
_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000
_LOW_62 = (1 << 62) - 1


class IdMaker:
    """:param random_bytes: asked for 4 KiB at a time: each system call lets go of the interpreter, and at tens of thousands of
    ids a second the other threads would take it at every one of them.
    """

    __slots__ = ("_pool", "_random_bytes", "_used")

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._pool = b""
        self._used = _POOL_BYTES

    def make(self, wall_us: int) -> str:
        """A fresh id: 48 bits of milliseconds, 12 bits of the fraction below them, 62 random bits."""
        used = self._used
        if used >= _POOL_BYTES:
            self._pool = self._random_bytes(_POOL_BYTES)
            used = 0
        self._used = used + 8
        return task_id_of(wall_us, int.from_bytes(self._pool[used : used + 8], "big"))


def task_id_of(wall_us: int, random: int) -> str:
    """The id of this time and these 62 random bits."""
    millis, micros = divmod(wall_us, 1000)
    text = f"{(millis << 80) | ((micros << 12) // 1000 << 64) | _VERSION_AND_VARIANT | (random & _LOW_62):032x}"
    return f"task-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def made_at_us(task_id: str) -> int | None:
    """When an id of that form was made, wall clock; None for an id of another form."""
    match = _MADE.match(task_id)
    if match is None:
        return None
    return int(match[1] + match[2], 16) * 1000

"""Ids that a node makes: ``task-<uuid7>``, sortable by the time they were made (RFC 9562, section 5.7)."""

from __future__ import annotations

import re

_MADE = re.compile(r"task-([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


def make_task_id(wall_us: int, random_bytes: bytes) -> str:
    """A fresh id: 48 bits of milliseconds, 12 bits of the fraction below them, 62 bits of the eight random bytes."""
    millis, micros = divmod(wall_us, 1000)
    random = int.from_bytes(random_bytes, "big")
    fraction = (micros << 12) // 1000
    text = f"{millis:012x}7{fraction:03x}{0x8000000000000000 | (random & 0x3FFFFFFFFFFFFFFF):016x}"
    return f"task-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def made_at_us(task_id: str) -> int | None:
    """When an id of that form was made, wall clock; None for an id of another form."""
    match = _MADE.match(task_id)
    if match is None:
        return None
    return int(match[1] + match[2], 16) * 1000

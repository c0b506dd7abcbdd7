"""Ids made by a client, so that a submit sent again is the same task: ``task-<uuid7>`` (RFC 9562,
5.7), as nodes make them. Nodes read the id's age from it: one sent again after its task was
forgotten is refused (``id_too_old``)."""

from __future__ import annotations

import os
import random
import time

_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000
_SEED_BYTES = 32

# Ids must be distinct, not secret. A draw is atomic, and much cheaper than a system call.
_dice = random.Random(os.urandom(_SEED_BYTES))  # noqa: S311


def new_id() -> str:
    """A fresh id, from any thread: 48 bits of ms, 12 bits of their fraction, 62 random bits."""
    millis, micros = divmod(time.time_ns() // 1_000, 1_000)
    bits = (millis << 80) | ((micros << 12) // 1_000 << 64) | _VERSION_AND_VARIANT | _dice.getrandbits(62)
    text = f"{bits:032x}"
    return f"task-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _seed_again() -> None:
    _dice.seed(os.urandom(_SEED_BYTES))


os.register_at_fork(after_in_child=_seed_again)  # else parent and child would make the same next id

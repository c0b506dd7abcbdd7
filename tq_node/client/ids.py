"""Ids that a client makes, so that sending again is the same task: ``task-<uuid7>``, as nodes make
them (RFC 9562, section 5.7).

Of this form the nodes know how old an id is. One that comes again after its task was forgotten is
refused (``id_too_old``); it never becomes a second task.
"""

from __future__ import annotations

import os
import random
import time

_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000
_SEED_BYTES = 32

# Nobody has to be kept from guessing an id, only from meeting one. A draw is atomic, and much
# cheaper than a system call.
_dice = random.Random(os.urandom(_SEED_BYTES))  # noqa: S311


def new_id() -> str:
    """A fresh id, from any thread: 48 bits of milliseconds, 12 bits of the fraction below them, 62 random bits."""
    millis, micros = divmod(time.time_ns() // 1_000, 1_000)
    bits = (millis << 80) | ((micros << 12) // 1_000 << 64) | _VERSION_AND_VARIANT | _dice.getrandbits(62)
    text = f"{bits:032x}"
    return f"task-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _seed_again() -> None:
    _dice.seed(os.urandom(_SEED_BYTES))


# A child that went on with its parent's draws could make the parent's next id: two tasks would be
# one.
os.register_at_fork(after_in_child=_seed_again)

"""Commands of peers that handlers are still working on."""

from __future__ import annotations

from twisted.protocols import amp


class Budget:
    """Bytes that handlers work on, over all connections that share it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0

    def has_room(self, size: int) -> bool:
        return self.held_bytes + size <= self.bytes_max


class Asked:
    """A command of the peer that a handler works on. ``tag`` is None once it is answered, or if no answer is wanted."""

    __slots__ = ("budget", "command", "size", "tag")

    def __init__(self, command: type[amp.Command], tag: bytes | None, size: int, budget: Budget) -> None:
        self.command = command
        self.tag = tag
        self.size = size
        self.budget = budget
        budget.held_bytes += size

    def released(self) -> None:
        self.budget.held_bytes -= self.size

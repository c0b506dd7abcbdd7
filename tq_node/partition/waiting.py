"""Why a task that has not ended does not run: one function, with every reason there is.

Pure. A later reason is a field of ``Surroundings`` and a line of ``waiting_for``, and stands in
``types.WAIT_KINDS``. No task waits for room on the disk: where there is little, new ones are
refused, and what was accepted goes on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tq_node import limits
from tq_node.types import PauseEntry, State, TaskRow, WaitsFor


class Surroundings(msgspec.Struct, frozen=True):
    """What a row does not say itself. Times by the wall clock."""

    now_us: Callable[[], int]
    pause_of: Callable[[str, str], PauseEntry | None]
    """Of a queue or a type, by name."""
    without_handler_us: Callable[[str], int | None]
    """Since when no worker of the cluster has a handler for a type; None where one has, or may."""
    held_back: Callable[[int], str]
    """Why nothing of a partition starts now: ``draining``, it is handed over or its node stops;
    ``copies``, too few are in sync to keep a claim. Empty: it may, or who asks does not lead it."""
    has_free_slot: Callable[[TaskRow], bool]
    """Whether somebody could begin it at once, as far as known."""


def waiting_for(row: TaskRow, around: Surroundings) -> tuple[WaitsFor, ...]:
    """Why a task does not run. Empty: it does, or has ended, or will in a moment."""
    if row.state is State.SCHEDULED:
        since_us = row.attempts[-1].ended_us if row.attempts else row.spec.created_us
        return (WaitsFor("time", since_us, until_us=row.run_at_us),)
    if row.state is not State.PENDING:
        return ()
    spec, due_us = row.spec, row.run_at_us
    found = []
    for target, name in (("queue", spec.queue), ("type", spec.type)):
        pause = around.pause_of(target, name)
        if pause is not None:
            found.append(WaitsFor(f"{target}_paused", max(pause.since_us, due_us), name, pause.until_us))
    without_us = around.without_handler_us(spec.type)
    if without_us is not None:
        found.append(WaitsFor("no_handler", max(without_us, due_us), spec.type))
    if held_back := around.held_back(row.partition):
        found.append(WaitsFor(held_back, due_us))
    if not found and around.now_us() - due_us >= limits.WAITS_FOR_SLOT_US and not around.has_free_slot(row):
        found.append(WaitsFor("slots", due_us))
    return tuple(found)


def matches(reasons: tuple[WaitsFor, ...], kind: str, name: str) -> bool:
    """Whether a task waits for this; ``name`` empty: whatever the name."""
    return any(one.kind == kind and name in ("", one.name) for one in reasons)

"""Why a task that has not ended does not run: one function, with every reason there is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tq_node.types import State, TaskRow, WaitsFor


class Surroundings(msgspec.Struct, frozen=True):
    """What a row does not say itself. ``without_handler_us``: since when no worker of the cluster
    has a handler for a type, wall clock; None where one has, or may have."""

    without_handler_us: Callable[[str], int | None]


def waiting_for(row: TaskRow, around: Surroundings) -> tuple[WaitsFor, ...]:
    """Why a pending task does not run; empty where only its place in line holds it up."""
    if row.state is not State.PENDING:
        return ()
    without_us = around.without_handler_us(row.spec.type)
    return () if without_us is None else (WaitsFor("no_handler", max(without_us, row.run_at_us)),)

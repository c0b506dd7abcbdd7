"""Rules of the settings of task types in the cluster map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tq_node import limits
from tq_node.cluster.commands import AnnounceTypes, DeleteType, PutType
from tq_node.cluster.map_edit import MapEdit
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_type_sound
from tq_node.types import HandledType


def put(edit: MapEdit, command: PutType) -> None:
    before = edit.before.type_settings
    types = _with(before, (command.entry,))
    if not is_type_sound(command.entry):
        edit.refuse(Refusal.BAD_SETTINGS)
    elif len(types) > limits.TYPE_SETTINGS_MAX:
        edit.refuse(Refusal.TOO_MANY)
    elif types != before:
        edit.set(type_settings=types)
        edit.note_type(command.entry.type)


def announce(edit: MapEdit, command: AnnounceTypes) -> None:
    before = edit.before.announced_types
    types = _with(before, command.types)
    if not all(map(is_type_sound, command.types)):
        edit.refuse(Refusal.BAD_SETTINGS)
    elif len(types) > limits.TYPE_SETTINGS_MAX:
        edit.refuse(Refusal.TOO_MANY)
    elif types != before:
        edit.set(announced_types=types)
        for task_type in sorted({entry.type for entry in set(types).difference(before)}):
            edit.note_type(task_type)


def delete(edit: MapEdit, command: DeleteType) -> None:
    put_, announced = (
        tuple(entry for entry in entries if entry.type != command.task_type)
        for entries in (edit.before.type_settings, edit.before.announced_types)
    )
    if (put_, announced) == (edit.before.type_settings, edit.before.announced_types):
        edit.refuse(Refusal.NOT_NEEDED)
    else:
        edit.set(type_settings=put_, announced_types=announced)
        edit.note_type(command.task_type)


def _with(entries: Sequence[HandledType], more: Sequence[HandledType]) -> tuple[HandledType, ...]:
    """These entries with ``more`` in place of those of the same types, in order of types."""
    by_type = {entry.type: entry for entry in (*entries, *more)}
    return tuple(by_type[task_type] for task_type in sorted(by_type))


TYPE_RULES: dict[type, Callable[[MapEdit, Any], None]] = {PutType: put, DeleteType: delete, AnnounceTypes: announce}

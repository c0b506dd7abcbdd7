"""Rules of pauses in the cluster map: queues and types of which nothing starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_node import limits
from tq_node.cluster.commands import Pause, PauseQueue, Resume, ResumeQueue
from tq_node.cluster.map_edit import MapEdit
from tq_node.cluster.pauses import QUEUE, is_over
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_pause_sound
from tq_node.types import PauseEntry


def pause_queue(edit: MapEdit, command: PauseQueue) -> None:
    paused = edit.before.paused_queues
    if command.queue in paused:
        return
    if len(paused) >= limits.QUEUES_MAX or not 1 <= len(command.queue) <= limits.QUEUE_CHARS_MAX:
        edit.refuse(Refusal.TOO_MANY)
        return
    edit.set(paused_queues=tuple(sorted((*paused, command.queue))))
    edit.note_queue(command.queue, is_paused=True)


def resume_queue(edit: MapEdit, command: ResumeQueue) -> None:
    if command.queue in edit.before.paused_queues:
        _keep(edit, {entry.place: entry for entry in edit.before.pauses}, without=(QUEUE, command.queue))


def pause(edit: MapEdit, command: Pause) -> None:
    """Pause it; a second one takes the place of the first, from the first one's time on."""
    entry = command.entry
    if not is_pause_sound(entry):
        edit.refuse(Refusal.BAD_SETTINGS)
        return
    kept = {one.place: one for one in edit.before.pauses if not is_over(one, entry.since_us)}
    kept[entry.place] = entry
    if sum(one.target != QUEUE for one in kept.values()) > limits.PAUSED_TYPES_MAX:
        edit.refuse(Refusal.TOO_MANY)
        return
    gone = {one.name for one in edit.before.pauses if one.target == QUEUE and one.place not in kept}
    queues = set(edit.before.paused_queues) - gone
    if entry.target == QUEUE and len(queues | {entry.name}) > limits.QUEUES_MAX:
        edit.refuse(Refusal.TOO_MANY)
        return
    _keep(edit, kept)


def resume(edit: MapEdit, command: Resume) -> None:
    kept = {one.place: one for one in edit.before.pauses if not is_over(one, command.now_us)}
    _keep(edit, kept, without=(command.target, command.name))


def _keep(edit: MapEdit, kept: dict[tuple[str, str], PauseEntry], without: tuple[str, str] | None = None) -> None:
    """Keep these pauses and no others, but those of queues of which no more is known.

    :param without: goes in any case, with all that is known of it."""
    before = edit.before
    if without is not None:
        kept.pop(without, None)
    gone = {one.place for one in before.pauses if one.place not in kept} | {without}
    queues = {queue for queue in before.paused_queues if (QUEUE, queue) not in gone}
    queues.update(name for target, name in kept if target == QUEUE)
    pauses = tuple(kept[place] for place in sorted(kept))
    if (pauses, tuple(sorted(queues))) == (before.pauses, before.paused_queues):
        return
    edit.set(pauses=pauses, paused_queues=tuple(sorted(queues)))
    for queue in sorted(queues.symmetric_difference(before.paused_queues)):
        edit.note_queue(queue, is_paused=queue in queues)
    for name in sorted({one.name for one in set(pauses) ^ set(before.pauses) if one.target != QUEUE}):
        edit.note_type(name)


PAUSE_RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    PauseQueue: pause_queue,
    ResumeQueue: resume_queue,
    Pause: pause,
    Resume: resume,
}

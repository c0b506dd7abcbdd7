"""PURE. The table of all actions, from which key bindings, footer, help and palette are made."""

from __future__ import annotations

from dataclasses import dataclass

OVERVIEW, TASKS, TASK, NODES, DEAD, EVENTS = "overview", "tasks", "task", "nodes", "dead", "events"
SCREENS = (
    ("1", OVERVIEW, "Overview"),
    ("2", TASKS, "Tasks"),
    ("3", TASK, "Task"),
    ("4", NODES, "Nodes"),
    ("5", DEAD, "Dead"),
    ("6", EVENTS, "Events"),
)
EVERYWHERE = frozenset(name for _, name, _ in SCREENS)
LISTS = frozenset((TASKS, DEAD))
ONLY_TASKS = frozenset((TASKS,))
ONLY_NODES = frozenset((NODES,))
WITH_TASK = frozenset((TASKS, DEAD, TASK, EVENTS))


@dataclass(frozen=True, slots=True)
class Act:
    """One action. ``where``: screens on which it works. ``changes``: hidden by ``--readonly``.
    ``rank``: the footer leaves out the highest first; 0 is never left out, 99 never shown."""

    id: str
    keys: tuple[str, ...]
    title: str
    short: str
    group: str
    where: frozenset[str] = EVERYWHERE
    changes: bool = False
    rank: int = 99


ACTS: tuple[Act, ...] = (
    Act("help", ("question_mark", "f1"), "Help: what works here", "help", "Console", rank=0),
    Act("quit", ("q", "ctrl+q", "ctrl+c"), "Quit", "quit", "Console", rank=0),
    Act("palette", ("colon", "ctrl+p"), "Palette: every action by its name", "palette", "Console", rank=6),
    Act("back", ("escape",), "Close what is open: a filter, marks, a task", "back", "Console"),
    Act("freeze", ("p",), "Freeze what is shown, and go on", "freeze", "Console", rank=8),
    Act("calls", ("tilde",), "Calls behind what was done, as curl lines", "calls", "Console", rank=12),
    Act("theme", ("ctrl+t",), "Next theme", "theme", "Console"),
    Act("refresh", ("R", "f5"), "Look at all nodes now", "refresh", "Console"),
    Act("previous", ("left_square_bracket",), "Screen to the left", "left", "Screens"),
    Act("next", ("right_square_bracket",), "Screen to the right", "right", "Screens"),
    *(
        Act(f"screen-{name}", (key,), f"Screen: {title}", title, "Screens")
        for key, name, title in SCREENS
    ),
    Act("submit", ("n",), "Submit a new task", "new", "Tasks", changes=True, rank=2),
    Act("again", ("N",), "Submit again: a new task like this one", "again", "Tasks", WITH_TASK, changes=True, rank=10),
    Act("kill", ("K",), "Kill: this task, or all that are marked", "kill", "Tasks", WITH_TASK, changes=True, rank=3),
    Act("kill-all", ("X",), "Kill all that match the filter", "kill all", "Tasks", ONLY_TASKS, changes=True, rank=11),
    Act("retry", ("r",), "Retry: this task, or all that are marked", "retry", "Tasks", WITH_TASK, changes=True, rank=4),
    Act("retry-all", ("E",), "Retry all that match the filter", "retry all", "Tasks", LISTS, changes=True, rank=13),
    Act("pause", ("P",), "Pause a queue, or let it go on", "pause", "Tasks", changes=True, rank=9),
    Act("undo", ("z",), "Undo what was done last, where that is possible", "undo", "Tasks", changes=True, rank=14),
    Act("filter", ("slash",), "Filter: status:failed type:email !queue:bulk text", "filter", "List", LISTS | {EVENTS}, rank=1),
    Act("sort", ("s",), "Sort by the next column", "sort", "List", LISTS, rank=5),
    Act("reverse", ("S",), "Turn the order round", "reverse", "List", LISTS),
    Act("mark", ("space",), "Mark or unmark", "mark", "List", LISTS, rank=7),
    Act("mark-range", ("v", "ctrl+@"), "Mark from the last marked one to here", "range", "List", LISTS),
    Act("mark-all", ("a",), "Mark all that are loaded", "mark all", "List", LISTS),
    Act("unmark", ("u",), "Unmark all", "unmark", "List", LISTS),
    Act("why", ("w",), "Why does it wait?", "why", "List", WITH_TASK, rank=9),
    Act("copy", ("y",), "Copy the id", "copy", "Copy", WITH_TASK | {NODES}, rank=10),
    Act("copy-json", ("Y",), "Copy the task as JSON", "copy json", "Copy", WITH_TASK),
    Act("copy-curl", ("c",), "Copy the call for it, as a curl line", "curl", "Copy", WITH_TASK),
    Act("fold", ("o",), "Fold or unfold all parts", "fold", "List", frozenset((TASK,)), rank=5),
    Act("follow", ("f",), "Follow the newest event", "follow", "List", frozenset((EVENTS,)), rank=2),
    Act("drain", ("D",), "Drain a node, or take that back", "drain", "Nodes", ONLY_NODES, changes=True, rank=3),
    Act("remove", ("M",), "Remove a node from the cluster", "remove", "Nodes", ONLY_NODES, changes=True, rank=4),
    Act("shutdown", ("S",), "Shut a node down", "shut down", "Nodes", ONLY_NODES, changes=True, rank=5),
    Act("rebalance", ("B",), "Rebalance: spread partitions evenly", "rebalance", "Nodes", ONLY_NODES, changes=True, rank=6),
)  # fmt: skip

BY_ID = {act.id: act for act in ACTS}
MOVES = (
    ("↑ ↓ k j", "one line"),
    ("PgUp PgDn ctrl+b ctrl+f", "one page"),
    ("g G Home End", "first, last"),
    ("Enter", "open"),
    ("Tab", "next pane"),
    ("wheel, click, double click", "move, choose, open"),
    ("↑ ↓ behind /", "filters from before"),
)
"""Keys of the tables themselves, for the help."""
_SHOWN = {
    "question_mark": "?", "colon": ":", "slash": "/", "tilde": "~", "left_square_bracket": "[",
    "right_square_bracket": "]", "escape": "Esc", "space": "Space", "ctrl+@": "ctrl+Space",
}  # fmt: skip


def shown(key: str) -> str:
    """The name of a key for people."""
    return _SHOWN.get(key, key)


def available(screen: str, *, readonly: bool) -> list[Act]:
    """The actions of a screen, in the order of the table."""
    return [act for act in ACTS if screen in act.where and not (readonly and act.changes)]


def footer(acts: list[Act], width: int) -> list[Act]:
    """The actions that fit into the footer, by rank; help and quit always, at the end."""
    chosen: list[Act] = []
    room = width
    for act in sorted((act for act in acts if act.rank < 99), key=lambda act: act.rank):
        cells = len(shown(act.keys[0])) + len(act.short) + 3
        if act.rank and cells > room:
            break
        chosen.append(act)
        room -= cells
    return sorted(chosen, key=lambda act: (act.rank == 0, act.rank))

"""PURE. The map of partitions: each primary's node, who is in sync, who lags, what moves."""

from __future__ import annotations

from tq_tui import format as f
from tq_tui.charts import Line, filled, length
from tq_tui.client.models import Partition
from tq_tui.state.cluster_view import ClusterView

PRIMARY, IN_SYNC, BEHIND, ADDING, REMOVING, NONE = "█", "▒", "!", "+", "-", "·"
LEGEND = (
    (PRIMARY, "primary", "$success"),
    (IN_SYNC, "in sync", "$primary"),
    (BEHIND, "out of sync", "$error bold"),
    (ADDING, "arriving", "$warning"),
    (REMOVING, "leaving", "$warning"),
    (NONE, "no copy", "$foreground-disabled"),
)
_STYLES = {glyph: style for glyph, _, style in LEGEND}
_GREY = "$foreground-disabled"
TENS = 10
CELL_MAX = 3


def mark(entry: Partition, name: str) -> str:
    """What a node is to a partition, in one letter."""
    if name in entry.adding:
        return ADDING
    if name in entry.removing:
        return REMOVING
    if entry.primary == name:
        return PRIMARY
    if name not in entry.replicas:
        return NONE
    return IN_SYNC if name in entry.in_sync else BEHIND


def names(view: ClusterView) -> list[str]:
    """Names of all nodes that hold or may hold partitions, in the order of the view."""
    found = [node.name for node in view.nodes if node.name]
    for entry in view.partitions:
        for name in (entry.primary, *entry.replicas, *entry.adding):
            if name is not None and name not in found:
                found.append(name)
    return found


def label_width(view: ClusterView) -> int:
    return min(16, max((len(name) for name in names(view)), default=6) + 1)


def cell_width(view: ClusterView, width: int) -> int:
    """Columns for one partition: as many as leave room for all of them on one line."""
    return max(1, min(CELL_MAX, (width - label_width(view)) // max(1, len(view.partitions))))


def per_line(view: ClusterView, width: int) -> int:
    """Partitions beside one another; whole tens where that is possible."""
    room = max(1, width - label_width(view))
    room = min(room, max(1, len(view.partitions)))
    return room if room >= len(view.partitions) or room < TENS else room // TENS * TENS


def partition_map(view: ClusterView, width: int, chosen: int | None = None) -> list[Line]:
    """Rows of nodes, columns of partitions, in as many blocks as the width asks for."""
    label, beside, nodes = label_width(view), per_line(view, width), names(view)
    wide = cell_width(view, width)
    if not view.partitions:
        return [[("no partitions known yet", "$foreground-muted")]]
    down = {node.name for node in view.nodes if not node.is_up}
    lines: list[Line] = []
    for first in range(0, len(view.partitions), beside):
        block = view.partitions[first : first + beside]
        lines.append([(" " * label, ""), *_ruler(block, chosen, wide)])
        for name in nodes:
            line: Line = [(f.fit(name, label), _GREY if name in down else "")]
            for entry in block:
                glyph = mark(entry, name)
                style = _GREY if name in down and glyph != PRIMARY else _STYLES[glyph]
                style = "$error" if name in down and glyph == PRIMARY else style
                line.append((glyph * wide, f"{style} reverse" if entry.partition == chosen else style))
            lines.append(line)
        if any(entry.primary is None for entry in block):
            line = [(f.fit("nobody", label), "$error")]
            line += [((PRIMARY if entry.primary is None else " ") * wide, "$error") for entry in block]
            lines.append(line)
    return lines


def _ruler(block: tuple[Partition, ...], chosen: int | None, wide: int) -> Line:
    """``0         10        20``, with a mark above the chosen one."""
    text = ""
    for entry in block:
        at = (entry.partition - block[0].partition) * wide
        if len(text) <= at and entry.partition % TENS == 0:
            text = text.ljust(at) + str(entry.partition)
    text = text.ljust(len(block) * wide)[: len(block) * wide]
    if chosen is None or not block[0].partition <= chosen <= block[-1].partition:
        return [(text, "$foreground-muted")]
    place = (chosen - block[0].partition) * wide
    return [(text[:place], "$foreground-muted"), ("▼" * wide, "bold"), (text[place + wide :], "$foreground-muted")]


def legend(width: int) -> Line:
    line: Line = []
    gap = "  " if width >= 68 else " "
    for glyph, word, style in LEGEND if width >= 68 else LEGEND[:-1]:
        line += [(glyph, style), (f" {word}{gap}" if width >= 68 else f"{word} ", "$foreground-muted")]
    return filled(line, width)


def described(entry: Partition, width: int) -> list[Line]:
    """One partition in words."""
    primary = entry.primary or "nobody"
    sequence = "-" if entry.committed_sequence is None else f.exact(entry.committed_sequence)
    head: Line = [
        (f"partition {entry.partition}  ", "bold"),
        (f"{entry.state}  ", "$success" if entry.state == "active" else "$error"),
        ("primary ", "$foreground-muted"), (f"{primary}  ", "bold" if entry.primary else "bold $error"),
        ("in sync ", "$foreground-muted"), (f"{len(entry.in_sync)}/{len(entry.replicas) + (entry.primary is not None)}  ", ""),
    ]  # fmt: skip
    rest: Line = [
        ("epoch ", "$foreground-muted"), (f"{entry.epoch}  ", ""),
        ("version ", "$foreground-muted"), (f"{entry.version}  ", ""),
        ("committed ", "$foreground-muted"), (sequence, ""),
    ]  # fmt: skip
    lines: list[Line] = [[*head, *rest]] if length([*head, *rest]) <= width else [head, rest]
    copies: Line = [("copies ", "$foreground-muted")]
    for name in entry.replicas:
        lag = entry.lag.get(name)
        word = "out of sync" if name not in entry.in_sync else "in sync"
        behind = f", {f.exact(lag)} behind" if lag else ""
        copies.append((f"{name} ({word}{behind})  ", "" if name in entry.in_sync else "$error"))
    for name in entry.adding:
        copies.append((f"{name} arriving  ", "$warning"))
    for name in entry.removing:
        copies.append((f"{name} leaving  ", "$warning"))
    lines.append(copies)
    if entry.waiting:
        lines.append([("waits ", "$foreground-muted"), (entry.waiting, "$warning")])
    return [filled(line, width) for line in lines]


def roll(view: ClusterView, width: int, height: int, chosen: int) -> list[Line]:
    """Partitions in words, in as many columns as find room; the page with the chosen one."""
    if height < 2 or not view.partitions:
        return []
    name = label_width(view)
    cell = name + 26
    columns = max(1, width // cell)
    page = columns * height
    first = chosen // page * page
    shown = view.partitions[first : first + page]
    lines: list[Line] = []
    for row in range(min(height, len(shown))):
        line: Line = []
        for entry in shown[row::height]:
            copies = len(entry.replicas) + (entry.primary is not None)
            good = entry.state == "active" and len(entry.in_sync) == copies and not entry.is_moving
            committed = "" if entry.committed_sequence is None else f" #{f.count(entry.committed_sequence)}"
            words = f"{entry.primary or 'nobody':<{name}}{len(entry.in_sync)}/{copies} epoch {entry.epoch}{committed}"
            mark_style = "bold $accent" if entry.partition == chosen else "$foreground-muted"
            line += [(f"{entry.partition:>4} ", mark_style), (f.fit(words, cell - 5), "" if good else "$warning")]
        lines.append(filled(line, width))
    return lines


def moves(view: ClusterView) -> list[str]:
    """Each move in a few words."""
    return [
        f"{entry.partition}: "
        + ", ".join([f"to {name}" for name in entry.adding] + [f"off {name}" for name in entry.removing])
        for entry in view.partitions
        if entry.is_moving
    ]

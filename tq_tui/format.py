"""PURE. Numbers, times and words as shown. Widths are terminal cells: wide letters take two."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NewType

import msgspec
from rich.cells import cell_len, set_cell_size

Text = NewType("Text", str)
"""May be shown: moves no cursor, rings no bell, writes no clipboard. Of ``printable`` only."""
GLYPHS = {
    "scheduled": "◷",
    "pending": "○",
    "processing": "▶",
    "completed": "✔",
    "failed": "✘",
    "cancelled": "⊘",
    "lost": "⚠",
    "released": "↩",
}
"""One cell each: state is never colour alone."""
STYLES = {
    "scheduled": "$secondary",
    "pending": "$warning",
    "processing": "$primary bold",
    "completed": "$success",
    "failed": "$error bold",
    "cancelled": "$foreground-muted",
    "lost": "$error",
    "released": "$foreground-muted",
}
NODE_GLYPHS = {
    "active": "●", "up": "●", "suspect": "◐", "down": "✘", "joining": "◌", "draining": "◒", "connecting": "◌",
}  # fmt: skip
NODE_STYLES = {
    "active": "$success", "up": "$success", "suspect": "$warning", "down": "$error", "joining": "$warning",
    "draining": "$warning", "connecting": "$foreground-muted",
}  # fmt: skip
_BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = ("B", "K", "M", "G", "T")


def fit(text: str, width: int, *, right: bool = False) -> Text:
    """Exactly so many cells: cut with an ellipsis, or filled up. Control characters are shown."""
    text = printable(text)
    size = cell_len(text)
    if size > width:
        return Text(set_cell_size(text, width - 1) + "…" if width > 0 else "")
    return Text(" " * (width - size) + text if right else text + " " * (width - size))


def fit_middle(text: str, width: int) -> Text:
    """As ``fit``, but cut in the middle: ids differ at their ends."""
    text = printable(text)
    if cell_len(text) <= width or width < 5:
        return fit(text, width)
    head = (width - 1) // 3
    tail = str(text)
    while cell_len(tail) > width - head - 1:
        tail = tail[1:]
    return fit(set_cell_size(text, head) + "…" + tail, width)


def printable(text: str) -> Text:
    """On one line, without what could move the cursor of a terminal."""
    if text.isprintable():
        return Text(text)
    return Text("".join(letter if letter.isprintable() else {"\n": "⏎", "\t": " "}.get(letter, "·") for letter in text))


def printable_lines(text: str) -> list[Text]:
    return [printable(line.expandtabs(4)) for line in text.split("\n")]


def printable_text(text: str) -> Text:
    """As ``printable``, but lines stay lines."""
    return Text("\n".join(printable_lines(text)))


def duration(seconds: float) -> str:
    """At most five cells: ``80ms``, ``9.5s``, ``42s``, ``3m05``, ``2h07``, ``4d03``."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02}"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02}"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600:02}"


def age(when: datetime | None, now_s: float) -> str:
    """Since then; ``in 5s`` for what is to come."""
    if when is None:
        return "-"
    seconds = now_s - when.timestamp()
    return f"in {duration(-seconds)}" if seconds < -0.5 else duration(seconds)


def clock_time(when: datetime | None) -> str:
    """To the millisecond, UTC as everywhere."""
    return when.strftime("%H:%M:%S.") + f"{when.microsecond // 1000:03}" if when is not None else "-"


def clock_second(at_s: float) -> str:
    """The time of the day, UTC, of seconds since the epoch."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%SZ")


def moment(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d ") + clock_time(when) + "Z" if when is not None else "-"


def count(number: float) -> str:
    """At most five cells: ``999``, ``12.3k``, ``1.20M``."""
    if number < 1_000:
        return f"{number:.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = number / size
        if scaled < 999.5 or unit == "G":
            return (
                f"{scaled:.2f}{unit}"
                if scaled < 9.995
                else f"{scaled:.1f}{unit}"
                if scaled < 99.95
                else f"{scaled:.0f}{unit}"
            )
    raise AssertionError("unreachable")


def exact(number: int) -> str:
    """With thin separators: ``1 234 567``."""
    return f"{number:,}".replace(",", " ")


def rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if 0 < per_second < 99.95 else f"{count(per_second)}/s"


def size(number: float) -> str:
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            return f"{number:.0f}{unit}" if unit == "B" or number >= 99.5 else f"{number:.1f}{unit}"
        number /= 1_024
    raise AssertionError("unreachable")


def plural(number: int, one: str, many: str = "") -> str:
    return f"{exact(number)} {one if number == 1 else many or one + 's'}"


def sparkline(values: list[float], width: int, top: float = 0.0) -> str:
    """The last ``width`` values as blocks, the newest on the right. Nothing is the lowest block,
    little is one more. ``top``: the value that fills a cell."""
    values = values[-width:]
    highest = top or max(values, default=0.0)
    drawn = "".join(
        _BLOCKS[max(1, min(7, int(value / highest * 7.999)))] if highest > 0 and value > 0 else _BLOCKS[0]
        for value in values
    )
    return " " * (width - len(drawn)) + drawn


def bar_chart(values: list[float], width: int, height: int) -> list[str]:
    """As ``sparkline`` over several lines, the top one first."""
    values = values[-width:]
    highest = max(values, default=0.0)
    eighths = [round(value / highest * height * 8) if highest > 0 else 0 for value in values]
    eighths = [max(2, filled) if value > 0 else 1 for value, filled in zip(values, eighths, strict=True)]
    lines = []
    for row in range(height - 1, -1, -1):
        cells = (min(8, max(0, filled - row * 8)) for filled in eighths)
        line = "".join(" " if not cell else _BLOCKS[cell - 1] for cell in cells)
        lines.append(" " * (width - len(values)) + line)
    return lines


def meter(part: int, whole: int, width: int) -> str:
    filled = round(part / whole * width) if whole else 0
    return "█" * filled + "░" * (width - filled)


def compact_json(value: Any) -> str:
    """On one line. The letters stay as they are."""
    return "" if value is msgspec.UNSET else _dumped(value, separators=(",", ":"))


def pretty_json(value: Any) -> str:
    return _dumped(value, indent=2)


def task_json(task: msgspec.Struct) -> str:
    """A task as the API tells it, to be copied."""
    return _dumped(msgspec.to_builtins(task), indent=2)


def _dumped(value: Any, **form: Any) -> str:
    """Results of old stores may be nested deeper than an encoder goes."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, **form)
    except RecursionError:
        return "(nested too deep to be shown)"

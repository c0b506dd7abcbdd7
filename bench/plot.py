"""The report as a picture: one panel for each kind of work, one bar for each system. SVG, written as text.

A bar is a median; the line on it goes from the lowest to the highest round, the dotted one is our goal.
"""

from __future__ import annotations

from html import escape

from bench.report import number
from bench.samples import OURS, Book, Kind, Row

PARTS = ("submit", "batch", "drain", "pick-up", "status")
_WIDTH, _MARGIN = 760, 16
_LABEL, _VALUE = 110, 92
"""Room for the names on the left and for the figures on the right of the bars."""
_ROW, _BAR, _TITLE, _GAP = 20, 13, 26, 18
_OURS, _OTHERS = "#1f6f54", "#b9bdb5"
_INK, _SOFT = "#22251f", "#6a6f64"
_FONT = "font-family='system-ui, sans-serif' font-size='12'"


def svg(book: Book, heading: str) -> str:
    """The whole file; panels without any row are left out."""
    panels = [kind for part in PARTS for kind in book.kinds(part)]
    top = _MARGIN + _TITLE
    drawn: list[str] = [_text(_MARGIN, _MARGIN + 12, heading, fill=_SOFT)]
    for kind in panels:
        lines, height = _panel(kind, book.rows(kind), top)
        drawn += lines
        top += height + _GAP
    height = top - _GAP + _MARGIN
    size = f"width='{_WIDTH}' height='{height}'"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} viewBox='0 0 {_WIDTH} {height}' {_FONT}>",
            f"<title>{escape(heading)}</title>",
            f"<rect {size} fill='#ffffff'/>",
            *drawn,
            "</svg>\n",
        ]
    )


def _panel(kind: Kind, rows: list[Row], top: int) -> tuple[list[str], int]:
    """The lines of a panel, and its height."""
    goals = [row.goal for row in rows if row.goal is not None]
    most = max([*(max(row.values) for row in rows), *goals]) or 1.0
    left, room = _MARGIN + _LABEL, _WIDTH - 2 * _MARGIN - _LABEL - _VALUE

    def x(value: float) -> float:
        return round(left + room * value / most, 1)

    better = "more" if kind.more_is_better else "less"
    lines = [_text(_MARGIN, top + 12, f"{kind.part}: {kind.what}", weight="600")]
    lines.append(_text(_WIDTH - _MARGIN, top + 12, f"{kind.unit}, {better} is better", fill=_SOFT, anchor="end"))
    begin = top + _TITLE - 4
    for at, row in enumerate(rows):
        y = begin + at * _ROW
        middle = y + _BAR / 2
        fill = _OURS if row.system == OURS else _OTHERS
        lines.append(_text(left - 8, y + 11, row.system, anchor="end"))
        lines.append(
            f"<rect x='{left}' y='{y}' width='{max(1.0, x(row.median) - left):.1f}' height='{_BAR}' fill='{fill}'/>"
        )
        if len(row.values) > 1:
            lines.append(_line(x(min(row.values)), middle, x(max(row.values)), middle, _INK))
        lines.append(_text(_WIDTH - _MARGIN, y + 11, number(row.median), anchor="end"))
    for goal in goals:
        end = begin + len(rows) * _ROW - (_ROW - _BAR)
        lines.append(_line(x(goal), begin - 2, x(goal), end + 2, _SOFT, dashes="2 2"))
    return lines, _TITLE + len(rows) * _ROW


def _text(x: float, y: float, what: str, *, fill: str = _INK, anchor: str = "start", weight: str = "400") -> str:
    return f"<text x='{x}' y='{y}' fill='{fill}' text-anchor='{anchor}' font-weight='{weight}'>{escape(what)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, *, dashes: str = "none") -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{stroke}' stroke-dasharray='{dashes}'/>"

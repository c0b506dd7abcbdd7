"""Text in a widget, made printable first: it is other people's."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content
from textual.widgets import Static

from tq_tui import format as f
from tq_tui.charts import Line, shown


def content(lines: Iterable[Line]) -> Content:
    return Content("\n").join([Content.assemble(*shown(line)) for line in lines])


class Plain(Static):
    """A widget of plain text, without markup."""

    def __init__(self, words: str = "", *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(f.printable_text(words), id=id, classes=classes, markup=False)

    def say(self, words: str) -> None:
        self.update(f.printable_text(words))

    def draw(self, lines: Iterable[Line]) -> None:
        self.update(content(lines))

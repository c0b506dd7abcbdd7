"""A widget that shows what a pure function draws for its width and height."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.widget import Widget

from tq_tui.charts import Line
from tq_tui.widgets.plain import content

Draw = Callable[[int, int], list[Line]]


class Drawn(Widget):
    """Shows what ``Draw`` returns for its size. ``fixed``: the height follows what is drawn."""

    DEFAULT_CSS = "Drawn { height: 1fr; width: 1fr; } Drawn.-fixed { height: auto; }"

    def __init__(self, draw: Draw | None = None, *, widget_id: str | None = None, fixed: bool = False) -> None:
        super().__init__(id=widget_id, classes="-fixed" if fixed else None)
        self._draw: Draw = draw or (lambda width, height: [])
        self._lines = 0

    def show(self, draw: Draw) -> None:
        self._draw = draw
        self.refresh(layout=self.has_class("-fixed") and self._measured() != self._lines)

    def _measured(self) -> int:
        return len(self._draw(self.size.width or self.app.size.width, self.app.size.height))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        self._lines = len(self._draw(width, self.app.size.height))
        return self._lines

    def render(self) -> Content:
        return content(self._draw(self.size.width, self.size.height or self.app.size.height))

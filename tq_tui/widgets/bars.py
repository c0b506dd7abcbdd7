"""The lines above and below every screen: tabs, health, keys."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content
from textual.widget import Widget

from tq_tui import format as f
from tq_tui import keys
from tq_tui.state import health
from tq_tui.state.cluster_view import ClusterView


class TabLine(Widget):
    """The tabs, ``1 Overview  2 Tasks …``, and on the right ``badge``: frozen, read-only."""

    DEFAULT_CSS = "TabLine { height: 1; width: 1fr; background: $panel; }"

    def __init__(self, current: str) -> None:
        super().__init__()
        self.auto_links = False  # tabs look like tabs, not like links
        self.current = current
        self.badge = ""

    def set_badge(self, badge: str) -> None:
        if badge != self.badge:
            self.badge = badge
            self.refresh()

    def render(self) -> Content:
        width = self.size.width
        room = width - (cell_len(self.badge) + 2 if self.badge else 0)
        full = sum(len(title) + 4 for _, _, title in keys.SCREENS) <= room
        parts = []
        for key, name, title in keys.SCREENS:
            word = f" {key} {title} " if full else f" {key} {title[: max(2, room // 6 - 4)]} "
            style = "bold $text-primary on $primary-muted" if name == self.current else "$foreground"
            parts.append(Content.from_markup(f"[@click=app.act('screen-{name}')]$word[/]", word=word).stylize(style))
            if name == self.current:
                parts[-1] = parts[-1].stylize("underline")
        line = Content("").join(parts)
        if self.badge:
            gap = width - line.cell_length - cell_len(self.badge) - 1
            line = line + " " * max(1, gap) + Content.styled(self.badge, "bold $text-warning on $warning-muted")
        return line


class HealthLine(Widget):
    """The cluster's health in one line; in two where there is a reason to give and room for it."""

    DEFAULT_CSS = "HealthLine { height: 1; width: 1fr; } HealthLine.troubled { height: 2; }"

    def __init__(self) -> None:
        super().__init__()
        self._view = ClusterView()

    def show(self, view: ClusterView) -> None:
        self._view = view
        verdict = health.judge(view)
        self.set_class(bool(verdict.reasons) and self.app.size.height >= 20, "troubled")
        self.refresh()

    def render(self) -> Content:
        width = self.size.width
        verdict = health.judge(self._view)
        style = health.STYLES[verdict.health]
        head = f" {health.GLYPHS[verdict.health]} {f.printable(verdict.title)} "
        summary, sentence = health.summary(self._view), verdict.sentence
        # Where there is one line only, what is wrong matters more than how much there is.
        first = sentence if sentence and self.size.height == 1 else summary
        lines = [
            Content.assemble((head, f"bold {style}"), (" " + f.fit(first, max(0, width - cell_len(head) - 1)), style))
        ]
        if self.size.height > 1:
            lines.append(Content.styled(f.fit(f"   {sentence}", width), style))
        return Content("\n").join(lines)


class KeyLine(Widget):
    """The keys of the screen, by rank, as far as there is room; ``?`` and ``q`` always."""

    DEFAULT_CSS = "KeyLine { height: 1; width: 1fr; background: $panel; dock: bottom; }"

    def __init__(self) -> None:
        super().__init__()
        self.auto_links = False
        self._acts: list[keys.Act] = []

    def show(self, acts: list[keys.Act]) -> None:
        if acts != self._acts:
            self._acts = acts
            self.refresh()

    def render(self) -> Content:
        parts = []
        for act in keys.footer(self._acts, self.size.width):
            words = Content.assemble((f" {keys.shown(act.keys[0])}", "bold $accent"), (f" {act.short} ", ""))
            parts.append(Content.from_markup(f"[@click=app.act('{act.id}')]$words[/]", words=words))
        return Content("").join(parts)

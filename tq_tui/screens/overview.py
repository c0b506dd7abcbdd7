"""The first screen: how the cluster is, a card for each node, sums and charts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.containers import VerticalScroll
from textual.widget import Widget

from tq_tui import charts, keys
from tq_tui.charts import Line
from tq_tui.screens.base import ConsoleScreen
from tq_tui.state.cluster_view import ClusterView
from tq_tui.widgets.drawn import Drawn

CHART_LINES = 4


class Room(VerticalScroll):
    """The height left by other lines, drawn anew when it changes: health may take one more."""

    def on_resize(self) -> None:
        self.query_one(Drawn).refresh(layout=True)


class OverviewScreen(ConsoleScreen):
    kind: ClassVar[str] = keys.OVERVIEW

    def body(self) -> Iterable[Widget]:
        with Room(id="overview"):
            yield Drawn(widget_id="overview-text", fixed=True)

    def show(self, view: ClusterView) -> None:
        room = self.query_one(Room)
        self.query_one("#overview-text", Drawn).show(
            lambda width, height: overview(view, width, room.size.height or self.app.size.height - 4)
        )


def overview(view: ClusterView, width: int, height: int) -> list[Line]:
    """Cards where they leave room for sums and charts; charts get what remains of the height."""
    head = charts.cards(view, width, max(len(view.nodes), height - CHART_LINES - 3))
    lines = [*head, [("", "")], *charts.totals(view, width)]
    left = height - len(lines) - 1
    if left < 1:
        return lines if left >= -1 else [*head, *charts.totals(view, width)]
    return [*lines, [("", "")], *charts.charts(view, width, left)]

"""The screen of nodes: a table of them, a map of the partitions, the moves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tq_tui import keys, partition_map
from tq_tui.charts import Line, filled
from tq_tui.screens.base import ConsoleScreen
from tq_tui.screens.columns import node_columns
from tq_tui.state.cluster_view import ClusterView, NodeView
from tq_tui.widgets.drawn import Drawn
from tq_tui.widgets.rows import RowTable

NODES_MAX = 12
"""Rows of the table at most; the rest scrolls."""


class PartitionMap(Drawn, can_focus=True):
    """A map of partitions; arrows or a click choose one, described below the map."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", show=False),
        Binding("right,l", "step(1)", show=False),
        Binding("up,k", "line(-1)", show=False),
        Binding("down,j", "line(1)", show=False),
        Binding("home,g", "edge(0)", show=False),
        Binding("end,G", "edge(1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(widget_id="map")
        self.view = ClusterView()
        self.chosen = 0

    def show_view(self, view: ClusterView) -> None:
        self.view = view
        self.show(self._lines_for)

    def _lines_for(self, width: int, height: int) -> list[Line]:
        if not self.view.partitions:
            return partition_map.partition_map(self.view, width)
        self.chosen = max(0, min(self.chosen, len(self.view.partitions) - 1))
        drawn = partition_map.partition_map(self.view, width, self.chosen if self.has_focus else None)
        rest: list[Line] = [
            partition_map.legend(width),
            *partition_map.described(self.view.partitions[self.chosen], width),
        ]
        moves = partition_map.moves(self.view)
        if moves:
            words = f"{len(moves)} moving: " + "  ".join(moves)
            rest.append(filled([(words, "$warning")], width))
        left = height - len(drawn) - len(rest) - 1
        if left > 2:
            rest += [[("", "")], *partition_map.roll(self.view, width, left, self.chosen)]
        room = height - len(rest)
        if len(drawn) > room > 0:
            # Keep the block of the chosen one in sight.
            nodes = len(partition_map.names(self.view)) + 1
            first = self.chosen // partition_map.per_line(self.view, width) * nodes
            first = max(0, min(first, len(drawn) - room))
            drawn = drawn[first : first + room]
        return [*drawn, *rest]

    def _choose(self, place: int) -> None:
        self.chosen = max(0, min(place, len(self.view.partitions) - 1))
        self.refresh()

    def action_step(self, step: int) -> None:
        self._choose(self.chosen + step)

    def action_line(self, step: int) -> None:
        self._choose(self.chosen + step * partition_map.per_line(self.view, self.size.width))

    def action_edge(self, end: int) -> None:
        self._choose(len(self.view.partitions) if end else 0)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        width = self.size.width
        block = offset.y // (len(partition_map.names(self.view)) + 1)
        beside = partition_map.per_line(self.view, width)
        place = (offset.x - partition_map.label_width(self.view)) // partition_map.cell_width(self.view, width)
        if 0 <= place < beside:
            self._choose(block * beside + place)


class NodesScreen(ConsoleScreen):
    kind: ClassVar[str] = keys.NODES

    def body(self) -> Iterable[Widget]:
        columns = node_columns(lambda: self.console.view)
        table: RowTable[NodeView] = RowTable(
            columns, lambda node: node.address, widget_id="nodes", empty="no nodes yet"
        )
        table.dim = lambda node: not node.is_up
        yield table
        yield PartitionMap()

    def on_mount(self) -> None:
        self.query_one("#nodes").focus()

    def show(self, view: ClusterView) -> None:
        table: RowTable[NodeView] = self.query_one("#nodes", RowTable)
        height = min(len(view.nodes), NODES_MAX, max(2, self.size.height // 3)) + 1
        table.styles.height = height
        table.set_rows(view.nodes)
        self.query_one(PartitionMap).show_view(view)

    def chosen_node(self) -> str | None:
        node: NodeView | None = self.query_one("#nodes", RowTable).current
        return node.name or None if node is not None else None

"""PURE. Which addresses to watch from now on, and which no longer."""

from __future__ import annotations

from tq_tui.addresses import same_place
from tq_tui.state.cluster_view import ClusterView, NodeView


def newcomers(view: ClusterView) -> tuple[str, ...]:
    """HTTP addresses of members that are not watched yet."""
    watched = {same_place(node.address) for node in view.nodes}
    names = {node.name for node in view.nodes if node.name}
    unknown = [member.http for name, member in view.members.items() if member.http and name not in names]
    return tuple(address for address in unknown if same_place(address) not in watched)


def leavers(view: ClusterView) -> tuple[str, ...]:
    """Addresses to watch no more: learnt ones of nodes that left, and second ones of a node."""
    kept: dict[str, NodeView] = {}
    gone: list[str] = []
    for node in sorted(view.nodes, key=lambda node: (not node.given, not node.is_up)):
        if (node.name and node.name in kept) or (
            not node.given and not node.is_up and view.members and node.name not in view.members
        ):
            gone.append(node.address)
        elif node.name:
            kept[node.name] = node
    return tuple(gone)

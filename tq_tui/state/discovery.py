"""PURE. Who is to be watched: members that nobody watches yet, and addresses that are no longer needed."""

from __future__ import annotations

from tq_tui.addresses import same_place
from tq_tui.state.cluster_view import ClusterView, NodeView


def newcomers(view: ClusterView) -> tuple[str, ...]:
    """HTTP addresses of members that nobody watches yet."""
    watched = {same_place(node.address) for node in view.nodes}
    names = {node.name for node in view.nodes if node.name}
    found: list[str] = []
    for name, member in view.members.items():
        if member.http and name not in names and same_place(member.http) not in watched:
            found.append(member.http)
    return tuple(found)


def leavers(view: ClusterView) -> tuple[str, ...]:
    """Addresses to watch no longer: learnt ones whose node has left, and second names of a node that is watched already."""
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

"""Certificates that members have shown to this node, for the cluster map to keep.

The leader, whom all members dial, has them noted. So a node that is removed is known by its last
certificates for ever, and comes back under no other id."""

from __future__ import annotations

from collections.abc import Callable

from tq_node.cluster.commands import NoteCertificate
from tq_node.cluster.records import ACCESS_LEVEL, ClusterMap
from tq_node.types import NodeId


class ShownCertificates:
    """Each by its SHA-256. ``own``: this node's now; empty: it has none."""

    def __init__(self, me: NodeId) -> None:
        self.own: Callable[[], bytes] = bytes
        self._me = me
        self._shown: dict[NodeId, bytes] = {}

    def seen(self, node_id: NodeId, certificate: bytes) -> None:
        """A peer that is a member was let in with this certificate; empty: with none."""
        if certificate:
            self._shown[node_id] = certificate

    def unnoted(self, cluster_map: ClusterMap) -> NoteCertificate | None:
        """One that the map lacks, of a member."""
        if not (self._shown or self.own()) or cluster_map.feature_level < ACCESS_LEVEL:
            return None
        for node_id, certificate in {**self._shown, self._me: self.own()}.items():
            node = cluster_map.nodes.get(node_id)
            if node is None or not node.is_member:
                self._shown.pop(node_id, None)
            elif certificate and cluster_map.certificates.get(node_id, ())[-1:] != (certificate,):
                return NoteCertificate(node_id, certificate)
        return None

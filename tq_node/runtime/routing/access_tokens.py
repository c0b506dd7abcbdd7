"""The access tokens as this node knows them: the cluster's table, how fresh it is, the file."""

from __future__ import annotations

import msgspec

from tq_node.cluster.records import ClusterMap
from tq_node.facade import TokenTable
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.confirmation import Confirmation
from tq_node.runtime.control.control_plane import ControlPlane
from tq_node.tokens import TokenEntry


class FileTokens(msgspec.Struct, frozen=True):
    """What a node is told of tokens beside the cluster's table, by its options."""

    are_checked: bool = False
    """Callers must show a token, whatever the table says."""
    tokens: tuple[TokenEntry, ...] = ()


class AccessTokens:
    """See ``TaskQueue.token_table``."""

    def __init__(self, plane: ControlPlane, clock: Clock, of_file: FileTokens) -> None:
        self.confirmation = Confirmation(plane.consensus, clock)
        self._plane = plane
        self._machine = plane.machine
        self._clock = clock
        self._of_file = of_file
        self._seen_map: ClusterMap | None = None
        self._stale = self._fresh = TokenTable()

    def table(self) -> TokenTable:
        """See ``TaskQueue.token_table``."""
        if self._machine.map is not self._seen_map:
            self._renew(self._machine.map)
        return self._fresh if self._clock.now_ms() < self.confirmation.until_ms else self._stale

    def tell_file(self, of_file: FileTokens) -> None:
        """The tokens file has changed."""
        self._of_file, self._seen_map = of_file, None

    def _renew(self, cluster_map: ClusterMap) -> None:
        self._seen_map = cluster_map
        known, of_file = self._stale, self._of_file
        is_checked = self._plane.tokens_seen or of_file.are_checked
        seen = TokenTable(cluster_map.tokens, False, is_checked, known.version, of_file.tokens)
        if seen != known:
            self._stale = msgspec.structs.replace(seen, version=known.version + 1)
            self._fresh = msgspec.structs.replace(self._stale, is_fresh=True)

    # --- life ---
    def follow(self) -> None:
        """The control plane has begun, or the map has changed: a table that has tokens, or may get
        them from elsewhere, is kept confirmed from now on."""
        if self._plane.tokens_seen or self._of_file.are_checked:
            self.confirmation.start()

    def stop(self) -> None:
        self.confirmation.stop()

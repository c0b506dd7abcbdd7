"""The cluster map as the Raft log's state machine: all nodes apply the same entries in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger

from tq_node.cluster import commands
from tq_node.cluster import map as tables
from tq_node.cluster.map import EMPTY, Change, ClusterMap, UnreadableMap
from tq_node.cluster.refusals import Refused
from tq_node.cluster.soundness import is_map_sound, is_registration_sound
from tq_node.errors import Unsound
from tq_node.raft.messages import Configuration
from tq_node.runtime.control.raft_driver import StateMachine

_log = Logger(namespace="taskqueue.cluster")
_OUTCOMES_KEPT = 1_024


class ClusterMachine(StateMachine):
    """Holds the cluster map as of the newest applied entry.

    :param on_changed: called with the changes after each entry that made any; with none after a
        restore."""

    def __init__(self, on_changed: Callable[[Sequence[Change]], None]) -> None:
        self.map: ClusterMap = EMPTY
        self._on_changed = on_changed
        self._outcomes: dict[int, tuple[Refused, ...]] = {}

    def apply(self, log_index: int, data: bytes) -> None:
        """Apply an entry; raises ``UnreadableCommand`` of a later release: the node stops (F44)."""
        command = commands.decode(data)
        applied = tables.apply(self.map, log_index, command)
        self.map = applied.map
        if isinstance(command, commands.Order) and command.by and not applied.refused:
            _log.info(
                "token {by} ordered, by entry {index}: {order}",
                by=command.by, index=log_index, order=commands.sentence_of(command, self.map.nodes), event="order_applied",
            )  # fmt: skip
        self._outcomes[log_index] = applied.refused
        if len(self._outcomes) > _OUTCOMES_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        if applied.changes:
            self._on_changed(applied.changes)

    def outcome(self, log_index: int) -> tuple[Refused, ...]:
        """The parts that were refused of an entry that was just applied."""
        return self._outcomes.get(log_index, ())

    def configuration_changed(self, log_index: int, configuration: Configuration) -> None:
        self._on_changed(())

    def restore(self, log_index: int, data: bytes) -> None:
        """:raises UnreadableMap: a snapshot of a later release."""
        self.map = tables.decode(data) if data else EMPTY
        self._on_changed(())

    def check_entry(self, data: bytes) -> None:
        try:
            command = commands.decode(data)
        except (commands.UnreadableCommand, ValueError, RecursionError) as why:
            raise Unsound(f"an entry that is no command of the table: {why}") from None
        if isinstance(command, commands.RegisterNode) and not is_registration_sound(command.node):
            raise Unsound("the registration of a node that can't be one")

    def can_restore(self, log_index: int, data: bytes) -> bool:
        """Whether the data is a map of this cluster, no later than ``log_index``."""
        try:
            table = tables.decode(data)
        except (UnreadableMap, ValueError, RecursionError):
            return False
        known = self.map
        is_ours = not known.is_founded or (table.cluster_id, table.settings) == (known.cluster_id, known.settings)
        return is_ours and table.map_version <= log_index and is_map_sound(table)

    def snapshot(self) -> bytes:
        return tables.encode(self.map)

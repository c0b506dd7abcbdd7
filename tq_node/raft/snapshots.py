"""Snapshots in chunks: what a leader sends to a follower that its log no longer reaches, and how
the follower puts it together.

Dissertation, chapter 5. One chunk is on its way at a time; the follower says which byte it waits
for, so a lost, doubled or late chunk costs time and nothing else. Until the last chunk the
follower's log is as it was: nothing to undo at a crash (F6)."""

from __future__ import annotations

from collections.abc import Callable

from tq_node.errors import Unsound
from tq_node.raft.lost_log import LostLog
from tq_node.raft.messages import AppendReply, Snapshot, SnapshotChunk, SnapshotReply
from tq_node.raft.state import NodeState
from tq_node.types import NodeId


class Snapshots:
    """Snapshots of the state machine. ``is_readable``: may a received one be taken over?"""

    def __init__(self, state: NodeState, lost_log: LostLog, is_readable: Callable[[int, bytes], bool]) -> None:
        self._state = state
        self._lost_log = lost_log
        self._is_readable = is_readable
        self._assembling: tuple[NodeId, int, int, int, int] | None = None
        """(leader, its term, log_index, log_term, total bytes) of what the buffer has in part."""
        self.buffer = bytearray()

    # --- leader ---
    def begin(self, target: NodeId) -> None:
        """Send the latest snapshot; it covers everything that the log has dropped."""
        state = self._state
        snapshot = state.log.snapshot
        assert snapshot.log_index >= state.log.offset_index > 0
        state.progress[target].needs_snapshot(snapshot)
        self._send_chunk(target)

    def _send_chunk(self, target: NodeId) -> None:
        state = self._state
        progress = state.progress[target]
        snapshot = progress.snapshot
        assert snapshot is not None
        offset = progress.snapshot_offset
        data = snapshot.data[offset : offset + state.settings.snapshot_chunk_bytes]
        state.send(
            SnapshotChunk(
                *(state.me, target, state.term, snapshot.log_index, snapshot.term),
                *(snapshot.configuration, snapshot.configuration_index, offset, len(snapshot.data), data),
            )
        )

    def on_reply(self, message: SnapshotReply) -> None:
        """Send what the follower waits for, nothing twice: doubles would double what follows."""
        progress = self._state.progress[message.source]
        snapshot = progress.snapshot
        if snapshot is None or snapshot.log_index != message.log_index or message.offset == progress.snapshot_offset:
            return
        if message.offset > len(snapshot.data):
            raise Unsound(f"a follower waits for byte {message.offset} of {len(snapshot.data)}")
        progress.snapshot_offset = message.offset
        progress.snapshot_stalled = False
        self._send_chunk(message.source)

    def on_heartbeat_reply(self, source: NodeId) -> None:
        """The follower lives: send the chunk again if nothing moved since its last heartbeat."""
        progress = self._state.progress[source]
        if progress.snapshot_stalled:
            self._send_chunk(source)
        progress.snapshot_stalled = not progress.snapshot_stalled

    # --- follower ---
    def on_chunk(self, message: SnapshotChunk) -> None:
        state = self._state
        if not self.is_news(message):
            self.forget()
            self._accept(message.source)
            return
        if message.total_bytes > state.settings.snapshot_bytes_max:
            return
        key = (message.source, message.term, message.log_index, message.log_term, message.total_bytes)
        if key != self._assembling:
            self._assembling = key
            self.buffer.clear()
        if message.offset == len(self.buffer):
            self.buffer += message.data
            if len(self.buffer) == message.total_bytes:
                self._install(message)
                return
        state.send(SnapshotReply(state.me, message.source, state.term, message.log_index, len(self.buffer)))

    def is_news(self, message: SnapshotChunk) -> bool:
        """Whether it is past ``commit_index``: old ones may come after newer entries (F6)."""
        return message.log_index > self._state.log.commit_index

    def _install(self, message: SnapshotChunk) -> None:
        log = self._state.log
        data = bytes(self.buffer)
        self.forget()
        if not self._is_readable(message.log_index, data):
            raise Unsound(f"the snapshot of {message.log_index} can't be read here")
        if log.matches(message.log_index, message.log_term):
            log.commit_to(message.log_index)  # everything is here already; the entries behind it stay
        else:
            log.restore(
                Snapshot(message.log_index, message.log_term, message.configuration, message.configuration_index, data)
            )
        self._lost_log.saw_agreement(message.term, message.log_index)
        self._accept(message.source)

    def _accept(self, leader: NodeId) -> None:
        state = self._state
        state.send(AppendReply(state.me, leader, state.term, state.log.commit_index))

    def forget(self) -> None:
        self._assembling = None
        self.buffer = bytearray()

"""Getting entries onto a majority: the leader's appends and its commit index, the follower's side
of both.

Dissertation, 3.5 and 3.6; flow as in 10.2."""

from __future__ import annotations

from collections.abc import Sequence

from tq_node.errors import Busy, PayloadTooLarge, Unsound
from tq_node.raft import quorum
from tq_node.raft.lost_log import LostLog
from tq_node.raft.messages import ENTRY_OVERHEAD_BYTES, Append, AppendReply, Entry, EntryKind, Heartbeat, HeartbeatReply
from tq_node.raft.progress import Mode, Progress
from tq_node.raft.read_index import ReadIndex
from tq_node.raft.settings import NotLeader
from tq_node.raft.snapshots import Snapshots
from tq_node.raft.state import NodeState
from tq_node.raft.transfer import Transfer
from tq_node.types import NodeId


class Replication:
    def __init__(
        self, state: NodeState, reads: ReadIndex, snapshots: Snapshots, transfer: Transfer, lost_log: LostLog
    ) -> None:
        self._state = state
        self._reads = reads
        self._snapshots = snapshots
        self._transfer = transfer
        self._lost_log = lost_log

    # --- leader: the log grows ---
    def open_term(self) -> None:
        """A new leader's first entry, of its own term: all before commits with it (3.6.2, F2)."""
        state = self._state
        log = state.log
        state.term_start_index = log.last_index + 1
        state.uncommitted_bytes = sum(e.size_bytes for e in log.slice(log.commit_index + 1, log.last_index, 1 << 62))
        self.append(EntryKind.NO_OP, b"")
        self._lost_log.saw_agreement(state.term, log.last_index)

    def propose(self, data: bytes) -> int:
        """See ``RaftCore.propose``."""
        state = self._state
        if not state.is_leader:
            raise NotLeader(state.leader)
        if state.transfer_target is not None:
            raise Busy("leadership is being handed over")
        size_bytes = len(data) + ENTRY_OVERHEAD_BYTES
        if size_bytes > state.settings.entry_bytes_max:
            raise PayloadTooLarge(f"an entry holds {state.settings.entry_bytes_max - ENTRY_OVERHEAD_BYTES} bytes")
        if not self.has_room(size_bytes):
            raise Busy("too many bytes wait for a majority")
        return self.append(EntryKind.DATA, data)

    def has_room(self, size_bytes: int) -> bool:
        """Whether an entry may be proposed: bounds what a leader gathers that commits nothing."""
        return self._state.uncommitted_bytes + size_bytes <= self._state.settings.uncommitted_bytes_max

    def append(self, kind: EntryKind, data: bytes) -> int:
        """Append an entry of this term; it is sent before it is on this disk. Returns its index."""
        state = self._state
        assert state.is_leader
        entry = Entry(state.term, state.log.last_index + 1, kind, data)
        state.uncommitted_bytes += entry.size_bytes
        state.log.append((entry,))
        self.follow_configuration()
        self.send_all()
        return entry.log_index

    def follow_configuration(self) -> None:
        """Progress for exactly the members of the configuration in effect; others get nothing."""
        state = self._state
        members = state.configuration.members
        if len(members) != len(state.progress) or any(node not in state.progress for node in members):
            last_index = state.log.last_index
            state.progress = {node: state.progress.get(node) or Progress(last_index) for node in members}
        assert state.me in state.voters, "a leader is a voter of its own configuration"

    # --- leader: sending ---
    def send_all(self) -> None:
        for node in self._state.others():
            self.send(node)

    def send(self, target: NodeId, *, after_heartbeat: bool = False) -> None:
        """Whatever the follower's window has room for: entries, or news of the commit index, or a
        probe. ``after_heartbeat``: it lacks something and may have lost it; even with a full window
        an empty append will tell."""
        while self._send_one(target, after_heartbeat):
            after_heartbeat = False

    def _send_one(self, target: NodeId, after_heartbeat: bool) -> bool:
        """Send one message. True: there is more to send."""
        state = self._state
        log = state.log
        progress = state.progress[target]
        is_paused = progress.is_paused(state.settings)
        if is_paused and not (after_heartbeat and progress.mode is Mode.REPLICATE):
            return False
        prev_index = progress.next_index - 1
        prev_term = log.term(prev_index)
        if prev_term is None:
            self._snapshots.begin(target)
            return False
        entries: Sequence[Entry] = ()
        if not is_paused:
            entries = log.slice(prev_index + 1, self.sendable_index(), self.batch_bytes_max())
        is_news = entries or log.commit_index > progress.commit_sent
        if progress.mode is Mode.REPLICATE and not is_news and not after_heartbeat:
            return False
        state.send(Append(state.me, target, state.term, prev_index, prev_term, log.commit_index, tuple(entries)))
        size_bytes = sum(entry.size_bytes for entry in entries)
        progress.sent(prev_index + len(entries), size_bytes, log.commit_index)
        return bool(entries) and progress.next_index <= self.sendable_index()

    def sendable_index(self) -> int:
        """Entries leave before they are on this disk (10.2.1); a change of the configuration and
        what follows it do not.

        Else two voters can lock each other out: the demoted one has the change and may not
        campaign; the leader has lost it in a crash and gets no vote, as its log is shorter."""
        log = self._state.log
        return log.last_index if log.configuration_index <= log.durable_index else log.configuration_index - 1

    def own_disk_moved(self, durable_before: int) -> None:
        """More of the log is durable: a majority may be complete, a change may be sent."""
        log = self._state.log
        self.advance_commit()
        if durable_before < log.configuration_index <= log.durable_index:
            self.send_all()

    def batch_bytes_max(self) -> int:
        """For one message: longer ones would hold up the heartbeats behind them (F36)."""
        return self._state.settings.message_bytes_max

    # --- leader: answers ---
    def on_append_reply(self, message: AppendReply) -> None:
        state = self._state
        source = message.source
        progress = state.progress[source]
        if message.lost:
            self._on_loss(progress, message)
            return
        if message.rejected:
            hint_index, _ = state.log.agreement_at_most(message.hint_index, message.hint_term)
            if progress.rejected(message.log_index, hint_index + 1):
                self.send(source)
            return
        if message.log_index > state.log.last_index:
            raise Unsound(f"a follower has {message.log_index}, and its leader's log ends at {state.log.last_index}")
        if progress.accepted(message.log_index):
            progress.note_round(state.log.last_index, state.settings)
            self.advance_commit()
            self._transfer.hand_over_if_caught_up(source)
        self.send(source)

    def _on_loss(self, progress: Progress, message: AppendReply) -> None:
        """Fill the follower again from where the logs may agree. A late message is ignored."""
        if 0 < message.log_index <= progress.match_index:
            hint_index, _ = self._state.log.agreement_at_most(message.hint_index, message.hint_term)
            progress.set_back(min(message.log_index, hint_index + 1))
            self.send(message.source)

    def on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        state = self._state
        progress = state.progress[message.source]
        progress.answered_heartbeat()
        if progress.mode is Mode.SNAPSHOT:
            self._snapshots.on_heartbeat_reply(message.source)
        elif progress.match_index < state.log.last_index:
            self.send(message.source, after_heartbeat=True)
        elif progress.mode is Mode.PROBE:
            self.send(message.source)
        self._transfer.hand_over_if_caught_up(message.source)  # once more: the first word may be lost

    # --- leader: committing ---
    def own_match(self) -> int:
        """A leader counts itself only up to what its own disk has (10.2.1)."""
        return self._state.log.durable_index

    def may_commit(self, log_index: int) -> bool:
        """Only entries of the current term commit by counting (3.6.2; F2, the paper's figure 8)."""
        return self._state.log.term(log_index) == self._state.term

    def advance_commit(self) -> None:
        """Commit what a majority has, and inform the followers."""
        state = self._state
        log = state.log
        state.progress[state.me].match_index = self.own_match()
        matches = {node: progress.match_index for node, progress in state.progress.items()}
        log_index = quorum.majority_value(matches, state.voters)
        if log_index <= log.commit_index or not self.may_commit(log_index):
            return
        newly = log.slice(log.commit_index + 1, log_index, 1 << 62)
        state.uncommitted_bytes -= sum(entry.size_bytes for entry in newly)
        log.commit_to(log_index)
        self._reads.confirm()
        self.send_all()

    # --- follower ---
    def on_append(self, message: Append) -> None:
        state = self._state
        log = state.log
        if message.prev_log_index < log.commit_index:
            # Late, or sent before the leader knew this log. The committed part is the leader's too.
            self._accept(message.source, log.commit_index)
            return
        last_new = log.try_append(message.prev_log_index, message.prev_log_term, message.entries)
        if last_new is None:
            hint = log.agreement_at_most(message.prev_log_index, message.prev_log_term)
            state.send(AppendReply(state.me, message.source, state.term, message.prev_log_index, True, *hint))
            return
        log.commit_to(self.commit_after(message, last_new))
        self._lost_log.saw_agreement(message.term, last_new)
        self._accept(message.source, last_new)

    def commit_after(self, message: Append, last_new: int) -> int:
        """Not beyond what this message proves equal: another term's leftovers may follow (3.5)."""
        return min(message.commit_index, last_new)

    def _accept(self, leader: NodeId, log_index: int) -> None:
        state = self._state
        state.send(AppendReply(state.me, leader, state.term, log_index))

    def on_heartbeat(self, message: Heartbeat) -> None:
        """Its commit index is never beyond what this node has said to have. Where it is, this node
        says that it lacks it and gives no answer that counts, be it that its own disk shows an
        older state (F14) or that the leader is none."""
        state = self._state
        log = state.log
        if message.commit_index > log.last_index:
            self._lost_log.claimed(message.source, message.term, message.commit_index)
            ends = (log.last_index, log.last_term)
            state.send(AppendReply(state.me, message.source, state.term, message.commit_index, True, *ends, lost=True))
            return
        log.commit_to(message.commit_index)
        state.send(HeartbeatReply(state.me, message.source, state.term, message.round))

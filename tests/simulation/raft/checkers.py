"""Invariant I14 and the bounds, looked at after every single event; incremental, so that a seed stays cheap.

Log matching is checked as: an entry of (term, index) is the same everywhere, and so is the term before it; by induction the logs
are then equal below. State machine safety: what is committed at an index never changes; equal indexes have equal digests.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.families import need
from tests.support.quorums import majorities_overlap
from tq_node.raft import quorum
from tq_node.raft.messages import Append, AppendReply, Entry, Message, Ready, Role, SnapshotChunk, Vote, VoteReply
from tq_node.raft.progress import Mode
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId

if TYPE_CHECKING:
    from tests.simulation.raft.node import RaftNode


class Watched:
    """What was last seen of one run of a node."""

    __slots__ = ("applied", "commit", "configuration", "last", "term", "was_leader")

    def __init__(self, term: int) -> None:
        self.term = term
        self.commit = 0
        self.applied = 0
        self.was_leader = False
        self.configuration: Any = None
        self.last = (0, 0)


class Checkers:
    def __init__(self, nodes: dict[NodeId, RaftNode], settings: RaftSettings) -> None:
        self._nodes = nodes
        self._settings = settings
        self._watched: dict[NodeId, Watched] = {}
        self._leaders: dict[int, NodeId] = {}
        self._votes: dict[tuple[NodeId, int], NodeId] = {}
        self._entries: dict[tuple[int, int], tuple[int, int]] = {(1, 1): (0, 0)}
        """(index, term) -> (term before it, checksum)."""
        self.committed: list[int] = [0, 1]
        """Term of the committed entry at each index, by anybody's knowledge."""
        self._committed_in: list[int] = [0, 0]
        """Term of the leader that committed it."""
        self.on_elected: Callable[[RaftNode], None] | None = None
        self._digests: dict[int, int] = {}
        self._kept: dict[NodeId, int] = {}
        """What each node has said to have on disk, as far as it is committed."""
        self.configuration_changes = 0
        self.snapshots_installed = 0
        self.reads_served = 0
        self.term_max = 1

    @property
    def commit_index(self) -> int:
        return len(self.committed) - 1

    @property
    def elections(self) -> int:
        return len(self._leaders)

    # --- the life of a node ---
    def started(self, node: RaftNode) -> None:
        watched = self._watched[node.me] = Watched(node.core.term)
        watched.commit = watched.applied = node.core.commit_index
        need(node.core.commit_index <= self.commit_index, "a restarted node believes no more than was committed")
        need(node.durable.last_index >= self._kept.get(node.me, 0), "what is durable stays, also at a crash:", node.me)

    def crashed(self, node: RaftNode) -> None:
        del self._watched[node.me]

    # --- after every event ---
    def after_event(self, node: RaftNode) -> None:
        core = node.core
        log = core.log
        watched = self._watched[node.me]
        if core.term != watched.term:
            need(core.term > watched.term, "a term never decreases:", node.me)
            watched.term = core.term
            self.term_max = max(self.term_max, core.term)
        if core.role is Role.LEADER:
            if not watched.was_leader:
                self._elected(node)
            self._check_bounds(node)
        watched.was_leader = core.role is Role.LEADER
        if log.commit_index != watched.commit:
            self._check_commit(node, watched)
        last = (log.last_index, log.last_term)
        if last != watched.last or log.configuration is not watched.configuration:
            watched.last = last
            if log.configuration is not watched.configuration:
                self.configuration_changes += 1
                watched.configuration = log.configuration
            self._check_overlap(node)

    def _elected(self, node: RaftNode) -> None:
        """What was committed in earlier terms, it has. A stale leader may win late, after a later term has already committed."""
        log = node.core.log
        leader = self._leaders.setdefault(node.core.term, node.me)
        need(leader == node.me, "election safety: two leaders of term", node.core.term, leader, node.me)
        last = self.commit_index
        while self._committed_in[last] >= node.core.term:
            last -= 1
        need(
            log.last_index >= last and (last < log.offset_index or log.term(last) == self.committed[last]),
            "leader completeness: a leader lacks a committed entry",
            *(node.me, node.core.term, last),
        )
        if self.on_elected is not None:
            self.on_elected(node)

    def _check_commit(self, node: RaftNode, watched: Watched) -> None:
        log = node.core.log
        need(log.commit_index > watched.commit, "a commit index never decreases:", node.me)
        for index in range(max(watched.commit + 1, log.offset_index), log.commit_index + 1):
            term = log.term(index)
            assert term is not None
            if index < len(self.committed):
                need(self.committed[index] == term, "a committed entry never changes:", node.me, index)
            else:
                need(index == len(self.committed), "nobody commits what nobody has committed before it:", index)
                self.committed.append(term)
                self._committed_in.append(node.core.term)
                self._check_durable(node, index, term)
        watched.commit = log.commit_index

    def _check_durable(self, node: RaftNode, index: int, term: int) -> None:
        """Only a leader commits first; a majority of its voters has the entry on disk at that moment."""
        need(node.core.role is Role.LEADER, "only a leader commits what nobody knew to be committed:", node.me)
        have = set()
        for voter in node.core.configuration.voters:
            durable = self._nodes[voter].durable
            if durable.term(index) == term or durable.snapshot.log_index >= index:
                have.add(voter)
        need(
            quorum.is_majority(have, node.core.configuration.voters),
            "what is committed is durable on a majority:",
            *(index, sorted(have), node.core.configuration),
        )

    def _check_bounds(self, node: RaftNode) -> None:
        state = node.core.state
        settings = self._settings
        slack = 4 * settings.entry_bytes_max  # the no-op, a change of membership, what an election inherited
        need(state.uncommitted_bytes >= 0, "uncommitted bytes are counted right")
        inherited = max(0, state.term_start_index - state.log.commit_index) * settings.entry_bytes_max
        need(
            state.uncommitted_bytes <= settings.uncommitted_bytes_max + slack + inherited,
            "uncommitted bytes are bounded",
        )
        reads = node.core._reads
        need(len(reads.waiting) + len(reads.early) <= settings.reads_max, "waiting reads are bounded")
        for progress in state.progress.values():
            if progress.mode is Mode.REPLICATE:
                need(len(progress.inflight) <= settings.inflight_messages_max, "messages in flight are bounded")
                need(progress.inflight_bytes <= settings.inflight_bytes_max, "bytes in flight are bounded")
            if progress is not state.progress[node.me]:
                need(progress.match_index < progress.next_index, "what is sent next lies above what is known")

    def _check_overlap(self, node: RaftNode) -> None:
        """Configurations in use overlap pairwise. In use: of any log that has all committed entries, for only such can lead."""
        if not self._may_lead(node):
            return
        mine = node.core.configuration.voters
        for other in self._nodes.values():
            if other is not node and other.is_up and other.core.configuration.voters != mine and self._may_lead(other):
                theirs = other.core.configuration.voters
                need(
                    majorities_overlap(mine, theirs),
                    "configurations in use overlap:",
                    *(node.me, mine, other.me, theirs),
                )

    def _may_lead(self, node: RaftNode) -> bool:
        log = node.core.log
        last = self.commit_index
        return log.offset_index > last or log.term(last) == self.committed[last]

    # --- what leaves the core ---
    def saw_ready(self, node: RaftNode, ready: Ready) -> None:
        for entry in ready.entries:
            before = node.core.log.term(entry.log_index - 1)
            known = self._entries.setdefault(
                (entry.log_index, entry.term), (before or 0, zlib.crc32(entry.data, entry.kind))
            )
            need(
                known == (before or 0, zlib.crc32(entry.data, entry.kind)),
                "log matching: equal index and term, unequal logs:",
                *(node.me, entry.log_index, entry.term),
            )
        if ready.snapshot is not None:
            self.snapshots_installed += 1
            index = ready.snapshot.log_index
            need(index <= self.commit_index, "a snapshot holds only what is committed")
            need(ready.snapshot.term == self.committed[index], "a snapshot is of the committed log")
            need(ready.snapshot.configuration.voters, "a snapshot keeps its configuration")
            need(ready.snapshot.configuration_index > 0, "a snapshot keeps its configuration's index")
        waiting = len(node.core._snapshots.buffer)
        need(waiting <= self._settings.snapshot_bytes_max, "a snapshot being put together is bounded")

    def sent(self, node: RaftNode, message: Message) -> None:
        """At the moment a message really leaves."""
        kind = type(message)
        if kind is VoteReply:
            assert isinstance(message, VoteReply)
            if message.granted and not message.pre:
                self._vote(node, message.term, message.target)
        elif kind is Vote:
            assert isinstance(message, Vote)
            if not message.pre:
                self._vote(node, message.term, node.me)
        elif kind is AppendReply:
            assert isinstance(message, AppendReply)
            if not message.rejected:
                kept = min(message.log_index, self.commit_index)
                if node.durable.term(kept) == self.committed[kept]:  # else it answers a leader of the past
                    self._kept[node.me] = max(self._kept.get(node.me, 0), kept)
        elif kind is Append:
            assert isinstance(message, Append)
            size = sum(entry.size_bytes for entry in message.entries)
            need(size <= self._settings.message_bytes_max, "a message is bounded")
        elif kind is SnapshotChunk:
            assert isinstance(message, SnapshotChunk)
            need(len(message.data) <= self._settings.snapshot_chunk_bytes, "a chunk is bounded")

    def _vote(self, node: RaftNode, term: int, candidate: NodeId) -> None:
        voted = self._votes.setdefault((node.me, term), candidate)
        need(voted == candidate, "one vote per term, across restarts:", node.me, term, voted, candidate)

    def applied(self, node: RaftNode, entry: Entry | None = None) -> None:
        machine = node.machine
        watched = self._watched.get(node.me)
        if entry is not None:
            need(machine.index <= self.commit_index, "nothing is applied that is not committed")
            need(self.committed[machine.index] == entry.term, "what is applied is what is committed")
            need(machine.index <= node.durable.last_index, "what is applied is durable here:", node.me)
            assert watched is not None
            need(machine.index > watched.applied, "an applied index never decreases")
        if watched is not None:
            watched.applied = max(watched.applied, machine.index)
        known = self._digests.setdefault(machine.index, machine.digest)
        need(known == machine.digest, "equal indexes, unequal states:", node.me, machine.index)

    # --- reads ---
    def read_confirmed(self, node: RaftNode, floor: int, log_index: int) -> None:
        need(log_index >= floor, "a read is not older than its beginning:", node.me, log_index, floor)

    def read_served(self, node: RaftNode, floor: int) -> None:
        need(node.machine.index >= floor, "a read is served from a state that is new enough:", node.me)
        self.reads_served += 1

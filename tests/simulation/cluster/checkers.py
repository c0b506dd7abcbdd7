"""What a world of whole nodes promises, looked at while it runs and once it is quiet. Numbers in brackets: ``replication.md``."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from tests.simulation.families import Violation, need
from tests.support.model_store.reads import digest
from tq_node.facade import Claim, Completed, EventBatch, Outcome
from tq_node.types import NodeId, State, TaskRow, Token

if TYPE_CHECKING:
    from tests.simulation.cluster.node import SimulatedNode
    from tests.simulation.cluster.work import Process
    from tests.simulation.cluster.world import ClusterWorld


class Known:
    """What is known of one task from what clients and workers have asked and heard."""

    __slots__ = (
        "cancels",
        "completions",
        "content",
        "done",
        "is_acknowledged",
        "made_by",
        "may_exist",
        "retries",
        "rev",
        "started",
    )

    def __init__(self) -> None:
        self.is_acknowledged = self.may_exist = False
        self.content: bytes | None = None
        """Of the submit that was accepted."""
        self.made_by = ""
        """The token that submits it."""
        self.rev = 0
        """The newest that anybody has heard."""
        self.cancels = 0
        """That may have been done."""
        self.completions: dict[Token, bool] = {}
        """Completions that workers have sent: whether one was acknowledged."""
        self.started = Token(0, 0)
        self.done: Token | None = None


class Checkers:
    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self.tasks: dict[str, Known] = {}
        self._rows: dict[tuple[str, int], int] = {}
        """(id, revision) -> what was read there."""
        self._running: dict[str, Process] = {}
        self._leaders: dict[int, NodeId] = {}
        self._active: dict[tuple[int, int], NodeId] = {}
        self._last_active: dict[NodeId, dict[int, int]] = {}
        self._completed: dict[str, int] = {}
        """Completions told as events."""
        self.answers = self.starts_seen = self.strong_reads = 0
        self.helped = 0
        """Attempts that began at another node than their primary's."""
        self.remote = 0
        """Attempts of remote workers."""
        self.claimed_again = 0
        """Claims that they got when they asked again."""

    def known(self, task_id: str) -> Known:
        found = self.tasks.get(task_id)
        if found is None:
            found = self.tasks[task_id] = Known()
        return found

    # --- after each event of a node ---
    def look_at(self, node: SimulatedNode) -> None:
        """One leader to a term, one active primary to an epoch (I4, I14)."""
        core = node.member.plane.core
        me = node.member.node_id
        if core.is_leader and self._leaders.setdefault(core.term, me) != me:
            raise Violation(f"two leaders in term {core.term}: {node.name} and another (I14)")
        local = node.local
        if local is None:
            return
        leading = local.table.leading
        if leading != self._last_active.get(me):
            self._last_active[me] = dict(leading)
            for place in leading.items():
                need(self._active.setdefault(place, me) == me, "one active primary for (partition, epoch)", place)

    # --- workers ---
    def claimed(self, node: SimulatedNode, claim: Claim) -> None:
        self.claimed_by(node.name, claim)

    def claimed_by(self, name: str, claim: Claim) -> None:
        """By a node's worker, or a remote one."""
        known = self.need_known(claim)
        need(claim.token > known.started, "tokens only grow (I10)", claim.task_id, claim.token, known.started)
        known.started = claim.token
        self.starts_seen += 1
        self.remote += name.startswith("w")
        self._world.trace.add(f"{self._world.time.now_us} claim {claim.task_id} {claim.token} {name}")

    def need_known(self, claim: Claim) -> Known:
        known = self.known(claim.task_id)
        need(known.may_exist, "what is claimed was submitted", claim.task_id)
        return known

    def starts(self, process: Process) -> None:
        other = self._running.get(process.claim.task_id)
        if other is not None:
            raise Violation(
                f"two workers run {process.claim.task_id} at once: {other.host} since {other.claim.token}, "
                f"{process.host} since {process.claim.token} (I12)"
            )
        self._running[process.claim.task_id] = process

    def ends(self, process: Process) -> None:
        if self._running.get(process.claim.task_id) is process:
            del self._running[process.claim.task_id]
        self._world.clients.claims.append(process.claim)

    def runs_at(self, host: str) -> bool:
        return any(process.host == host for process in self._running.values())

    def finishing(self, claim: Claim, outcome: Outcome) -> None:
        if isinstance(outcome, Completed):
            self.known(claim.task_id).completions.setdefault(claim.token, False)

    def finished(self, claim: Claim, outcome: Outcome) -> None:
        self.answers += 1
        if not isinstance(outcome, Completed):
            return
        known = self.known(claim.task_id)
        if known.done is not None and known.done != claim.token:
            raise Violation(f"{claim.task_id} was completed twice: {known.done} and {claim.token} (P2)")
        known.done = claim.token
        known.completions[claim.token] = True

    def events_seen(self, batch: EventBatch) -> None:
        for event in batch.transitions:
            if event.to_state is State.COMPLETED:
                count = self._completed[event.task_id] = self._completed.get(event.task_id, 0) + 1
                need(count == 1, "a task completes once (P2)", event.task_id)

    # --- clients ---
    def accepted(self, task_id: str, content: bytes) -> None:
        known = self.known(task_id)
        self.answers += 1
        if known.content is None:
            known.content = content
        need(known.content == content, "one id has one content", task_id, known.content, content)
        known.is_acknowledged = known.may_exist = True
        known.rev = max(known.rev, 1)

    def heard_row(self, row: TaskRow, floor: int, *, is_strong: bool) -> None:
        """:param floor: the revision that somebody had heard of before the call began."""
        self.answers += 1
        seen = hash_of(row)
        first = self._rows.setdefault((row.id, row.rev), seen)
        need(first == seen, "a revision is one state, and what is read is committed (P5)", row.id, row.rev)
        known = self.known(row.id)
        need(known.may_exist, "what is read was submitted", row.id)
        need(row.spec.made_by == known.made_by, "a task keeps the name of its token", row.id, row.spec.made_by)
        if not is_strong:
            return
        self.strong_reads += 1
        if row.rev < floor:
            raise Violation(f"{row.id} was read at revision {row.rev}, {floor} had been heard of before (I13)")
        known.rev = max(known.rev, row.rev)

    def heard_absence(self, task_id: str, floor: int) -> None:
        need(floor == 0, "what was accepted is found (P1, I13)", task_id)

    # --- the end ---
    def at_the_end(self) -> None:
        """All is whole and quiet: copies are equal, nothing is lost, what is there was asked for, books are empty."""
        nodes = self._world.nodes
        table = nodes[0].node.state.map
        rows: dict[str, Any] = {}
        by_id = {node.member.node_id: node for node in nodes}
        for partition, entry in enumerate(table.partitions):
            digests = {}
            for copy in entry.isr:
                digests[by_id[copy].name] = digest(by_id[copy].store._disk, partition)
            need(len(set(digests.values())) == 1, "rows are equal on all copies (I11)", partition, digests)
            assert entry.primary is not None
            disk = by_id[entry.primary].store
            for row in disk._disk.tasks.values():
                if row.partition == partition:
                    need(row.id not in rows, "a task is in one partition", row.id)
                    rows[row.id] = row
        self._judge(rows)
        self._compare_stats(rows)
        for node in nodes:
            self._books_are_empty(node)

    def _judge(self, rows: dict[str, Any]) -> None:
        for task_id, known in self.tasks.items():
            row = rows.get(task_id)
            if row is None:
                need(not known.is_acknowledged, "what was acknowledged is there (P1)", task_id)
                continue
            need(known.may_exist, "a definite refusal means not done (P4)", task_id)
            need(row.state >= State.COMPLETED, "every accepted task ends (P6)", task_id, State(row.state).label)
            need(row.rev >= known.rev, "nothing acknowledged is undone", task_id, row.rev, known.rev)
            if known.done is not None:
                need(row.state == State.COMPLETED, "an acknowledged completion stays (P2)", task_id, row.state)
            if row.state == State.COMPLETED:
                need(known.completions, "somebody completed it", task_id)
            if row.state == State.CANCELLED:
                need(known.cancels, "somebody cancelled it (P4)", task_id)
        for task_id in rows:
            need(task_id in self.tasks, "every row was submitted", task_id)

    def _compare_stats(self, rows: dict[str, Any]) -> None:
        counted = [0] * len(State)
        for row in rows.values():
            counted[row.state] += 1
        node = self._world.nodes[-1]
        stats = self._world.settled(node.queue.stats(cluster=True))
        is_whole = not (stats.missing or stats.partitions_missing)
        need(list(stats.primary) == counted and is_whole, "stats are the rows", stats, counted)

    def _books_are_empty(self, node: SimulatedNode) -> None:
        """Nothing is left of what has been answered, whatever went wrong on the way (I15)."""
        local, plane = node.local, node.member.plane
        assert local is not None
        table, running, copies = local.table, local.claims, local.table.driver
        books = {
            "open tasks": table.open_tasks,
            "loads": table._loads,
            "pins": table.rows._pins,
            "claims": running._claims,
            "ending": running._ending,
            "set aside": running._set_aside,
            "set back": running._set_back,
            "renewed": running.remote._renewed,
            "lent": running.remote._granted,
            "of workers": running.of_workers.books,
            "requests of workers": [node.node.work.remote._requests, len(node.node.work.remote._until)],
            "waits of workers": [node.node.work.remote._ids, node.node.work.remote._waits],
            "waits": [waiting for waiters in copies._waiters for waiting in waiters._waiting],
            "uncommitted": [
                (core.partition, core.uncommitted_bytes)
                for core in copies.cores
                if core.uncommitted_bytes and local.replication.is_held(core.partition)  # a leftover keeps what it had
            ],
            "bytes in flight": copies._budget.in_flight_bytes,
            "settles": copies._applier._settles,
            "snapshots": [*copies._store_requests._open, *copies._store_requests._opening, *node.store._snapshots],
            "reads": local.replication.read_index._reads,
            "watches": local.reads.watches,
            "forwarded": node.node.state.client._gathered,
            "proposals": [p for p in plane.consensus._proposals.values() if not p.deferred.called],
            "raft reads": [*plane.consensus._reads, *plane.consensus._served],
        }
        left = {name: book for name, book in books.items() if (any(book) if isinstance(book, list) else book)}
        need(not left, f"nothing is left in the books of {node.name} (I15)", left)


def hash_of(row: TaskRow) -> int:
    return zlib.crc32(repr(row).encode())

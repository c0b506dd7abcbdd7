"""The queue in small, at one simulated node: submit, claim with a token, run under a lease, complete, read strongly."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.simulation.replication.store import Row, Rows
from tests.support.world import MS_US, VirtualTime
from tq_node.partition.core import PartitionCore
from tq_node.partition.entries import Put
from tq_node.partition.leases import PingRounds
from tq_node.types import NodeId, State, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.replication.checkers import DataCheckers

READS_MAX = 200


class Operation:
    """Something that a client asked for and waits for."""

    __slots__ = ("kind", "task", "token")

    def __init__(self, kind: str, task: str, token: Token | None = None) -> None:
        self.kind = kind
        self.task = task
        self.token = token


class Attempt:
    """A worker that runs a task until it is done, or until the deadline that the kernel keeps (section 8)."""

    def __init__(self, node: NodeId, partition: int, task: str, token: Token, began_us: int) -> None:
        self.node = node
        self.partition = partition
        self.task = task
        self.token = token
        self.began_us = began_us
        self.deadline_us = began_us
        self.ended_us: int | None = None


class Read:
    __slots__ = ("began_us", "floor", "number", "partition")

    def __init__(self, partition: int, number: int, floor: int, began_us: int) -> None:
        self.partition = partition
        self.number = number
        self.floor = floor
        self.began_us = began_us


def encode_token(token: Token) -> bytes:
    return b"%d.%d" % token


def decode_token(body: bytes) -> Token:
    epoch, _, sequence = body.partition(b".")
    return Token(int(epoch), int(sequence))


class TaskSide:
    """Half of ``DataNode``. ``views``: committed rows; ``overlays``: rows proposed in this epoch; ``requeue``: attempts
    inherited."""

    me: NodeId
    cores: dict[int, PartitionCore[Operation]]
    views: dict[int, Rows]
    overlays: dict[int, dict[str, Row]]
    requeue: dict[int, dict[str, Token]]
    attempts: list[Attempt]
    reads: list[Read]
    rounds: PingRounds
    _lost: list[tuple[int, int, str, Token]]
    _dirty: set[int]
    _time: VirtualTime
    _random: random.Random
    _checkers: DataCheckers
    _breaks: frozenset[str]
    _later: Callable[..., None]
    us_of: Callable[[int], int]
    begin_round: Callable[[], int]

    @property
    def now_ms(self) -> int:
        raise NotImplementedError

    # --- the queue in small ---
    def row(self, partition: int, task: str) -> Row | None:
        return self.overlays[partition].get(task) or self.views[partition].rows.get(task)

    def can_serve(self, partition: int) -> bool:
        core = self.cores.get(partition)
        return core is not None and core.is_active and not core.is_handing_over and partition in self.overlays

    def _propose(self, partition: int, operation: Operation, row: Row, body: bytes, state: State, size: int) -> int:
        core = self.cores[partition]
        put = Put(operation.task, row.rev, row.rev + 1, row.state if row.rev else -1, state, 0, 0, body)
        sequence = core.propose(put, size, operation)
        self.overlays[partition][operation.task] = Row(put.rev, put.state, put.body)
        self._dirty.add(partition)
        self._checkers.asked(partition, operation)
        return sequence

    def submit(self, partition: int, task: str, size: int) -> None:
        if not self.can_serve(partition) or self.row(partition, task) is not None:
            return
        if self.cores[partition].uncommitted_bytes < 20_000:
            body = b"x" * size
            self._propose(partition, Operation("submit", task), Row(0, -1, b""), body, State.PENDING, size)

    def claim(self, partition: int, task: str) -> None:
        row = self.row(partition, task) if self.can_serve(partition) else None
        if row is not None and row.state == State.PENDING:
            before = decode_token(row.body) if b"." in row.body else Token(0, 0)
            self._claim(partition, task, row, before)

    def _claim(self, partition: int, task: str, row: Row, before: Token) -> None:
        core = self.cores[partition]
        if not core.will_share_entry(20):
            core.close_open()
        token = core.claim_token(before.sequence)
        operation = Operation("claim", task, token)
        sequence = self._propose(partition, operation, row, encode_token(token), State.PROCESSING, 20)
        assert sequence == token.sequence, "a claim's token is its entry's place"
        self._checkers.claimed(partition, task, token)

    def release(self, partition: int, task: str) -> None:
        """Claim, put back and claim again within one turn: the two claims must not share a token (F30a)."""
        row = self.row(partition, task) if self.can_serve(partition) else None
        if row is None or row.state != State.PENDING:
            return
        self.claim(partition, task)
        row = self.row(partition, task)
        assert row is not None
        self._propose(partition, Operation("release", task), row, row.body, State.PENDING, 20)
        self.claim(partition, task)

    def complete(self, partition: int, task: str, token: Token) -> None:
        row = self.row(partition, task) if self.can_serve(partition) else None
        if row is not None and row.state == State.PROCESSING and decode_token(row.body) == token:
            self._propose(partition, Operation("complete", task, token), row, row.body, State.COMPLETED, 20)
            self.requeue[partition].pop(task, None)

    def _answered(self, partition: int, sequence: int, operation: Operation) -> None:
        self._checkers.answered(partition, sequence, operation)
        if operation.kind == "claim" and self.can_serve(partition):
            assert operation.token is not None
            row = self.row(partition, operation.task)
            if row is None or row.state != State.PROCESSING or decode_token(row.body) != operation.token:
                return
            now_ms = self.now_ms
            until_us = self.us_of(self.cores[partition].runs_until_ms(now_ms))
            if until_us <= self._time.now_us:
                self._lose(partition, operation.task, operation.token)  # not confirmed lately: it may not start
                return
            attempt = Attempt(self.me, partition, operation.task, operation.token, self._time.now_us)
            attempt.deadline_us = until_us
            self.attempts.append(attempt)
            self._checkers.attempt_began(attempt)
            self._later(self._random.randint(1, 3_000) * MS_US, self._done, attempt)

    def _arm(self, now_ms: int) -> None:
        """Deadlines follow the confirmations; the kernel keeps them though the node sleeps."""
        for attempt in self.attempts:
            if attempt.deadline_us > self._time.now_us:
                core = self.cores[attempt.partition]
                if core.is_active and core.epoch == attempt.token.epoch:
                    until_us = self.us_of(core.runs_until_ms(now_ms))
                    attempt.deadline_us = max(attempt.deadline_us, until_us)
            else:
                self._end(attempt)
                self._lose(attempt.partition, attempt.task, attempt.token)
        self.attempts = [attempt for attempt in self.attempts if attempt.ended_us is None]

    def _done(self, attempt: Attempt) -> None:
        if attempt.ended_us is None:
            is_alive = attempt.deadline_us > self._time.now_us
            self._end(attempt)
            if is_alive:
                self.complete(attempt.partition, attempt.task, attempt.token)

    def _lose(self, partition: int, task: str, token: Token) -> None:
        self._lost.append((self._time.now_us, partition, task, token))

    def _requeue_lost(self) -> None:
        """An attempt of this node that has ended without a result."""
        lost, self._lost = self._lost, []
        for _, partition, task, token in lost:
            row = self.row(partition, task) if self.can_serve(partition) else None
            if row is not None and row.state == State.PROCESSING and decode_token(row.body) == token:
                self._claim(partition, task, row, token)

    def _end(self, attempt: Attempt) -> None:
        if attempt.ended_us is None:
            attempt.ended_us = min(attempt.deadline_us, self._time.now_us)

    def _requeue_inherited(self, partition: int) -> None:
        """Section 8: a lease after the own durable promise nobody else runs what was inherited."""
        core = self.cores[partition]
        inherited = self.requeue.get(partition)
        at_ms = core.requeue_at_ms
        if inherited and at_ms is not None and self.now_ms >= at_ms:
            for task, token in list(inherited.items())[:20]:
                del inherited[task]
                row = self.row(partition, task)
                if row is not None and row.state == State.PROCESSING and decode_token(row.body) == token:
                    self._claim(partition, task, row, token)

    # --- strong reads ---
    def read(self, partition: int, floor: int) -> None:
        """Answered once the first round that begins after it came is confirmed by all who count (section 7)."""
        if self.can_serve(partition) and len(self.reads) < READS_MAX:
            begun = 0 if "a read joins the round in flight" in self._breaks else 1
            read = Read(partition, self.rounds.number + begun, floor, self._time.now_us)
            self.reads.append(read)
            self.begin_round()

    def _serve_reads(self) -> None:
        waiting = []
        for read in self.reads:
            core = self.cores[read.partition]
            if core.may_read(read.number):
                self._checkers.read_served(self.me, read.partition, read.floor, core.committed)
            else:
                waiting.append(read)
        self.reads = waiting

"""Remote workers in virtual time: each asks any node, holds attempts by their leases alone, stops between an answer's arrival and
its reading, is cut off, and dies.

A handler is ended by the kernel at its lease's end, by the worker's own clock, whatever becomes of the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tests.simulation.cluster.time import SOCKET
from tests.simulation.cluster.work import Process
from tests.support.world import MS_US, SECOND_US
from tq_node.errors import NoSuchTask, StaleAttempt, TaskPurged
from tq_node.facade import (
    AttemptFailed,
    Claim,
    Completed,
    Extended,
    HeldAttempt,
    Outcome,
    Released,
    WorkerAsk,
    WorkerGrant,
)
from tq_node.types import TaskError, Token

if TYPE_CHECKING:
    from tests.simulation.cluster.node import SimulatedNode
    from tests.simulation.cluster.world import ClusterWorld

SLOTS = 3
EXTENDS_A_LEASE = 4
PATIENCE_US = 2 * SECOND_US
"""Beyond the wait that it asked for; then it asks another node."""
TROUBLE_US = 2_500_000
_NO = TaskError("E", "no")
_GONE = object()
Heard = Callable[[Any], None]


class RemoteWorker:
    """One worker, over all its starts. ``is_paused``: it runs no instruction, its handlers do."""

    def __init__(self, world: ClusterWorld, index: int) -> None:
        self.world = world
        self._random = world.rng("remote", index)
        self.name = f"w{index}"
        self._rate = 1.0 + self._random.uniform(-0.004, 0.004)
        self._lease_ms = int(world.small["lease_ms"]) * self._random.choice((1, 2))
        self._margin_ms = int(world.small["margin_ms"])
        self._types = self._random.choice((None, ("email",)))
        self._run = 0
        self._serial = 0
        self._unread: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.is_paused = self.is_cut = self.is_dead = False
        self.held: dict[tuple[str, Token], Process] = {}
        """Attempts that run, or whose end no node has taken yet."""
        self._requests: dict[int, Callable[[], None]] = {}
        """Under way; what to do if one is lost."""
        self._polls = 0

    # --- life ---
    def start(self) -> None:
        self._run += 1
        self.is_dead = False
        self._poll()
        self._in_worker(self._extend_us(), self._extend)

    def trouble(self, until_us: int) -> None:
        if self.world.time.now_us >= until_us or self.world.is_healing:
            return
        getattr(self, self._random.choice(("_pause", "_pause", "_cut", "_die")))()
        self.world.time.after(int(self._random.expovariate(1.0) * TROUBLE_US), self.trouble, until_us)

    def heal(self) -> None:
        self.is_cut = False
        self._go_on()

    def _pause(self) -> None:
        self.is_paused = True
        self.world.time.after(int(self._random.choice((0.3, 1.5, 4.0, 9.0)) * SECOND_US), self._go_on)

    def _go_on(self) -> None:
        self.is_paused = False
        unread, self._unread = self._unread, []
        for call, arguments in unread:
            call(*arguments)

    def _cut(self) -> None:
        self.is_cut = True
        self.world.time.after(int(self._random.uniform(0.3, 6.0) * SECOND_US), setattr, self, "is_cut", False)

    def _die(self) -> None:
        """Its handlers go with it, but for a few that run on to their lease's end."""
        if self.is_dead:
            return
        self.is_dead = True
        for process in self.held.values():
            if self._random.random() >= 0.2 and not process.is_over:
                self._over(process)
        self.held.clear()
        self._requests.clear()
        self._unread.clear()
        self.is_paused = False
        self._run += 1
        self.world.time.after(int(self._random.uniform(0.05, 3.0) * SECOND_US), self.start)

    def _in_worker(self, after_us: int, call: Callable[..., None], *arguments: Any) -> None:
        """Let it do so then, or when it goes on."""

        def wake(run: int) -> None:
            if run != self._run:
                return
            if self.is_paused:
                self._unread.append((call, arguments))
            else:
                call(*arguments)

        self.world.time.after(after_us, wake, self._run)

    def _local_us(self, own_ms: float) -> int:
        """So long by its clock, in the world's time."""
        return int(own_ms * MS_US / self._rate)

    def _extend_us(self) -> int:
        return self._local_us(self._lease_ms / EXTENDS_A_LEASE)

    # --- requests ---
    def _ask(
        self,
        kind: str,
        ask: Callable[[SimulatedNode], Deferred[Any]],
        heard: Heard,
        lost: Callable[[], None],
        *allowed: type[Exception],
        refused: Callable[[Exception], None] | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """Ask any node; ``lost`` where no answer comes, or one that says nothing."""
        self._serial += 1
        serial, world = self._serial, self.world
        self._requests[serial] = lost
        node = self._random.choice(world.nodes)
        run = node.runs
        answer: list[Deferred[Any]] = []

        def pass_by(call: Callable[..., None], *arguments: Any) -> None:
            if not self.is_cut:
                self._in_worker(self._delay(), self._read, serial, call, *arguments)

        def arrive() -> None:
            if not (node.is_up and node.runs == run) or self.is_cut or node.is_stopping:
                return
            answer.append(ask(node).addErrback(_is_gone))
            world.clients.call(
                kind, node, answer[0], lambda value: pass_by(heard, value), *allowed,
                refused=lambda error: pass_by(self._refused, lost, refused, allowed, error),
                unknown=lambda: pass_by(lost), wait_s=wait_s,
            )  # fmt: skip

        def out_of_patience() -> None:
            if self._requests.pop(serial, None) is not None:
                if self._random.random() < 0.7 and node.is_up and node.runs == run:
                    node.reactor.soon(self._delay(), SOCKET, hang_up)
                lost()

        def hang_up() -> None:
            if answer and not answer[0].called and node.runs == run:
                answer[0].cancel()

        if node.is_up:
            node.reactor.soon(self._delay(), SOCKET, arrive)
        self._in_worker(int(wait_s * SECOND_US) + PATIENCE_US, out_of_patience)

    def _delay(self) -> int:
        return int(self._random.choice((1, 1, 1, 5, 20, 300)) * self._random.random() * MS_US)

    def _read(self, serial: int, call: Callable[..., None], *arguments: Any) -> None:
        if self._requests.pop(serial, None) is not None:
            call(*arguments)

    def _refused(
        self,
        lost: Callable[[], None],
        refused: Callable[[Exception], None] | None,
        allowed: tuple[type[Exception], ...],
        error: Exception,
    ) -> None:
        if refused is not None and isinstance(error, allowed):
            refused(error)
        else:
            lost()

    # --- claiming ---
    def _poll(self) -> None:
        free = SLOTS - len(self.held)
        if free <= 0 or not self.world.is_working:
            self._in_worker(100 * MS_US, self._poll)
            return
        self._polls += 1
        self._claim(f"{self._run}-{self._polls}", free, is_again=False)

    def _claim(self, claim_id: str, limit: int, *, is_again: bool) -> None:
        ask = WorkerAsk(self.name, self._lease_ms, claim_id, self._types)
        wait_s = 0.0 if self.world.is_healing else self._random.choice((0.0, 0.5, 3.0))
        sent_us = self.world.time.now_us

        def heard(grant: WorkerGrant | object) -> None:
            if isinstance(grant, WorkerGrant):
                self.world.checkers.claimed_again += len(grant.claims) * is_again
                self._start_all(grant.claims, sent_us + int(grant.waited_s * SECOND_US))
            self._in_worker(self._delay(), self._poll)

        def again() -> None:
            self._in_worker(self._delay(), lambda: self._claim(claim_id, limit, is_again=True))

        self._ask("claim_for", lambda node: node.queue.claim_for(ask, limit, wait_s), heard, again, wait_s=wait_s)

    def _start_all(self, claims: Sequence[Claim], from_us: int) -> None:
        until_us = self._until_us(from_us)
        for claim in claims:
            if until_us <= self.world.time.now_us or (claim.task_id, claim.token) in self.held:
                self.world.checkers.need_known(claim)
                continue
            process = Process(claim, self.name, until_us)
            self.held[process.key] = process
            self.world.checkers.claimed_by(self.name, claim)
            self.world.checkers.starts(process)
            self.world.time.at(until_us, self._lease_ends, process)
            self.world.time.after(self.world.run_us(), self._ends, process, self._outcome())

    def _until_us(self, from_us: int) -> int:
        return from_us + self._local_us(self._lease_ms - self._margin_ms)

    def _outcome(self) -> Outcome:
        if self.world.is_healing:
            return Completed(b'"done"')
        outcomes: list[Outcome] = [*[Completed(b'"done"')] * 5, AttemptFailed(_NO), Released()]
        return self._random.choice(outcomes)

    # --- leases ---
    def _extend(self) -> None:
        held = list(self.held.values())
        self._in_worker(self._extend_us(), self._extend)
        if not held:
            return
        asked = [
            HeldAttempt(one.claim.task_id, one.claim.partition, one.claim.attempt, one.claim.token) for one in held
        ]
        sent_us = self.world.time.now_us

        def heard(results: Sequence[Extended | Exception] | object) -> None:
            if results is not _GONE:
                assert isinstance(results, list)
                for process, result in zip(held, results, strict=True):
                    self._extended(process, result, sent_us)

        self._ask("extend", lambda node: node.queue.extend(self.name, asked), heard, lambda: None)

    def _extended(self, process: Process, result: Extended | Exception, sent_us: int) -> None:
        if not isinstance(result, Extended):
            return
        if result.lease_ms > 0:
            if not process.is_over:
                process.until_us = max(process.until_us, self._until_us(sent_us))
        elif not process.is_over and not process.is_stopping:
            process.is_stopping = True
            after_us = int(self._random.random() * SECOND_US)
            self.world.time.after(after_us, self._ends, process, AttemptFailed(TaskError("cancelled", "stopped")))

    def _lease_ends(self, process: Process) -> None:
        if process.is_over:
            return
        if process.until_us > self.world.time.now_us:
            self.world.time.at(process.until_us, self._lease_ends, process)
            return
        self._over(process)
        if self.held.get(process.key) is process:
            del self.held[process.key]

    def _over(self, process: Process) -> None:
        process.is_over = True
        self.world.checkers.ends(process)

    def _ends(self, process: Process, outcome: Outcome) -> None:
        if process.is_over:
            return
        self._over(process)
        if self.held.get(process.key) is process:
            self._in_worker(0, self._finish, process, outcome)

    def _finish(self, process: Process, outcome: Outcome) -> None:
        claim, checkers = process.claim, self.world.checkers

        def heard(value: object) -> None:
            if value is not _GONE:
                checkers.finished(claim, outcome)
            self.held.pop(process.key, None)

        def again() -> None:
            self._in_worker(200 * MS_US, self._finish, process, outcome)

        def ask(node: SimulatedNode) -> Deferred[Any]:
            checkers.finishing(claim, outcome)
            return node.queue.finish(claim, outcome)

        self._ask(
            "end", ask, heard, again, StaleAttempt, NoSuchTask, TaskPurged,
            refused=lambda _: heard(_GONE),
        )  # fmt: skip


def _is_gone(why: Failure) -> object:
    why.trap(CancelledError)
    return _GONE

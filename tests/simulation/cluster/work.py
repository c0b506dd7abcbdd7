"""The workers of one node in virtual time: they claim, run, note, finish and are killed as ``work.worker`` and its processes are.

A process is ended by the kernel at its lease's end, also while its node is paused; what the node learns of it comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from tests.simulation.cluster.time import SOCKET
from tests.support.workers import AnyType
from tests.support.world import MS_US, SECOND_US
from tq_node import limits
from tq_node.errors import StaleAttempt, TaskQueueError
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Notes, Outcome, Released
from tq_node.types import TaskError, Token

if TYPE_CHECKING:
    from tests.simulation.cluster.node import SimulatedNode

SLOTS = 4
FINISH_AGAIN_S = 0.1
FINISH_AGAIN_S_MAX = 2.0
ORPHAN_ODDS = 0.2
_NO = TaskError("E", "no")


class Process:
    """One attempt that runs. ``until_us``: when the kernel ends it, whatever else happens."""

    def __init__(self, claim: Claim, host: str, until_us: int) -> None:
        self.claim = claim
        self.host = host
        self.until_us = until_us
        self.is_over = False
        self.is_stopping = False

    @property
    def key(self) -> tuple[str, Token]:
        return self.claim.task_id, self.claim.token


class SimWorker(AnyType):
    """Implements ``facade.Worker``."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._world = node.world
        self._reactor = node.reactor
        self._queue = node.queue
        self._random = node.world.work_random
        self.processes: dict[tuple[str, Token], Process] = {}
        self.finishing = 0
        self._asked = 0
        self._again: list[IDelayedCall] = []
        self._call: IDelayedCall | None = None
        self._loops: list[LoopingCall] = []
        self._is_stopping = self._is_over = False

    def start(self) -> None:
        self._queue.attach(self)
        for work, every_s in ((self._schedule, limits.SAFETY_NET_S), (self._renew, limits.LEASE_RENEW_MS / 1000)):
            loop = LoopingCall(work)
            loop.clock = self._reactor
            loop.start(every_s, now=False)
            self._loops.append(loop)
        self._schedule()

    # --- facade.Worker; any type: the outcome is drawn ---
    @property
    def slots_free(self) -> int:
        return 0 if self._is_stopping or not self._world.is_working else SLOTS - len(self.processes) - self._asked

    def wake(self) -> None:
        self._schedule()

    def stop_attempt(self, task_id: str, token: Token) -> None:
        process = self.processes.get((task_id, token))
        if process is not None and not process.is_over and not process.is_stopping:
            process.is_stopping = True
            after_us = int(self._random.random() * 2 * SECOND_US)
            outcome = AttemptFailed(TaskError("cancelled", "stopped"))
            self._world.time.after(after_us, self._process_ends, process, outcome)

    # --- claiming ---
    def _schedule(self) -> None:
        if self._call is None and not self._is_stopping and len(self.processes) + self._asked < SLOTS:
            self._call = self._reactor.callLater(0, self._dispatch)

    def _dispatch(self) -> None:
        self._call = None
        free = SLOTS - len(self.processes) - self._asked
        if free <= 0 or not self._world.is_working:
            return
        self._asked += free
        self._queue.claim(free).addCallbacks(self._claimed, self._failed, callbackArgs=(free,)).addErrback(self._failed)

    def _failed(self, why: Failure) -> None:
        self._world.failures.append(f"{self._node.name}: the worker: {why.getTraceback()}")

    def _claimed(self, claims: Sequence[Claim], asked: int) -> None:
        self._asked -= asked
        for claim in claims:
            if self._is_stopping:
                self._world.checkers.claimed(self._node, claim)
                self._finish(claim, Released(), None)
            else:
                self._run(claim)
        if claims:
            self._schedule()

    def _run(self, claim: Claim) -> None:
        checkers = self._world.checkers
        granted_ms = self._queue.lease_ms(claim)
        if granted_ms <= 0:
            # A primary that slept for longer than its session may hear of a claim's commit when others have claimed the task
            # since (seed 7159): it is never started.
            checkers.need_known(claim)
            self._finish(claim, Released(), None)
            return
        checkers.claimed(self._node, claim)
        if self._is_of_another(claim):
            checkers.helped += 1
        process = Process(claim, self._node.host, self._until_us(granted_ms))
        self.processes[process.key] = process
        checkers.starts(process)
        self._world.time.at(process.until_us, self._lease_ends, process)
        self._world.time.after(self._world.run_us(), self._process_ends, process, self._draw_outcome())
        if self._random.random() < 0.2:
            self._reactor.soon(int(self._random.random() * 300 * MS_US), SOCKET, self._note, process)

    def _is_of_another(self, claim: Claim) -> bool:
        """Claimed for this node by another, which leads the partition."""
        local = self._node.local
        return local is not None and not local.leads(claim.partition)

    def _until_us(self, granted_ms: int) -> int:
        return self._reactor.world_us(self._reactor.seconds() + granted_ms / 1000)

    def _draw_outcome(self) -> Outcome:
        if self._world.is_healing:
            return Completed(b'"done"')
        outcomes: list[Outcome] = [
            *[Completed(b'"done"')] * 5,
            AttemptFailed(_NO, self._random.choice([None, 0])),
            AttemptFailed(_NO, final=True),
            Released(),
        ]
        return self._random.choice(outcomes)

    def _note(self, process: Process) -> None:
        if not process.is_over:
            noted = self._queue.note(process.claim, Notes(dropped=1))
            noted.addErrback(lambda why: why.trap(TaskQueueError)).addErrback(self._failed)

    def _renew(self) -> None:
        for process in list(self.processes.values()):
            granted_ms = self._queue.lease_ms(process.claim)
            if granted_ms > 0 and not process.is_over:
                process.until_us = self._until_us(granted_ms)

    # --- ends: first in the world, then as the node learns of them ---
    def _lease_ends(self, process: Process) -> None:
        if process.is_over:
            return
        if process.until_us > self._world.time.now_us:
            self._world.time.at(process.until_us, self._lease_ends, process)
            return
        self._process_ends(process, Lost())

    def _process_ends(self, process: Process, outcome: Outcome) -> None:
        if not process.is_over:
            process.is_over = True
            self._world.checkers.ends(process)
            self._reactor.soon(0, SOCKET, self._ended, process, outcome)

    def _ended(self, process: Process, outcome: Outcome) -> None:
        del self.processes[process.key]
        notes = Notes(dropped=1) if self._random.random() < 0.1 else None
        self._finish(process.claim, outcome, notes)
        self._schedule()

    def _finish(self, claim: Claim, outcome: Outcome, notes: Notes | None) -> None:
        self.finishing += 1
        self._say_finish(claim, outcome, notes, FINISH_AGAIN_S)

    def _say_finish(self, claim: Claim, outcome: Outcome, notes: Notes | None, again_s: float) -> None:
        checkers = self._world.checkers
        checkers.finishing(claim, outcome)

        def refused(why: Failure) -> None:
            error = why.value
            if isinstance(error, TaskQueueError) and (error.retryable or not error.definite):
                if self._is_over:
                    return
                later_s = min(again_s * 2, FINISH_AGAIN_S_MAX)
                again = self._reactor.callLater(again_s, self._say_finish, claim, outcome, notes, later_s)
                self._again = [call for call in self._again if call.active()] + [again]
                return
            self.finishing -= 1
            if not isinstance(error, StaleAttempt):
                self._failed(why)

        def heard(_: None) -> None:
            self.finishing -= 1
            checkers.finished(claim, outcome)

        self._queue.finish(claim, outcome, notes).addCallbacks(heard, refused).addErrback(self._failed)

    async def stop(self) -> None:
        """Handlers get no time here: their attempts are given back. What can't be said within some seconds stays unsaid."""
        self._is_stopping = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        for process in list(self.processes.values()):
            self._process_ends(process, Released())
        for _ in range(50):
            if not (self._asked or self.finishing or self.processes):
                break
            passed: Deferred[None] = Deferred()
            self._reactor.callLater(0.1, passed.callback, None)
            await passed
        self._is_over = True
        for loop in self._loops:
            loop.stop()
        for call in self._again:
            if call.active():
                call.cancel()

    def died(self, *, power: bool) -> None:
        """The node's process is gone. Its workers go with it, but for a few that run on to their lease's end."""
        for process in self.processes.values():
            if (power or self._random.random() >= ORPHAN_ODDS) and not process.is_over:
                process.is_over = True
                self._world.checkers.ends(process)

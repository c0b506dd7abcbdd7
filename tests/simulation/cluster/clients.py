"""What clients and operators ask of a world of whole nodes, and what becomes of each call: an answer, or a dead node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.simulation.families import Violation
from tests.support.world import SECOND_US
from tq_node.errors import (
    AlreadyFinal,
    IdConflict,
    NoSuchTask,
    NotRetryable,
    OutcomeUnknown,
    StaleAttempt,
    TaskQueueError,
)
from tq_node.facade import Accepted, Claim, Completed, ListQuery, Read, Stats, Submission, TaskPage
from tq_node.tokens import Asker
from tq_node.types import Backoff, TaskRow

if TYPE_CHECKING:
    from tests.simulation.cluster.node import SimulatedNode
    from tests.simulation.cluster.world import ClusterWorld

ANSWER_US_MAX = 40 * SECOND_US
"""Waits for commits, forwarded calls, and both one after the other."""
OWN_IDS = 14
MAKERS = ("", "ann", "bob")
"""The tokens that submit; whoever has none is not checked."""
NOBODYS = Asker("eve", own_only=True)
"""A token of which no task is."""


def maker_of(task_id: str) -> str:
    """Of an id of the clients' own: always the same, for another's could not be submitted again."""
    number = task_id.removeprefix("own-")
    return MAKERS[int(number) % len(MAKERS)] if number.isdigit() else ""


def must_be_its_own(asker: Asker | None, row: TaskRow) -> None:
    if asker is not None and row.spec.made_by != asker.name:
        raise Violation(f"{asker.name} was told of {row.id}, which {row.spec.made_by or 'nobody'} has submitted")


class Call:
    """One call: ``wait_us`` is what its caller was ready to wait besides."""

    def __init__(
        self, kind: str, node: SimulatedNode, began_us: int, wait_us: int, unknown: Callable[[], None]
    ) -> None:
        self.kind = kind
        self.node = node
        self.run = node.runs
        self.began_us = began_us
        self.wait_us = wait_us
        self.unknown = unknown


class Clients:
    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self._random = world.rng("clients")
        self._serial = 0
        self.open: dict[int, Call] = {}
        self.claims: list[Claim] = []
        """Of attempts that have been: zombies speak for them."""
        self.counts: dict[str, int] = {}

    # --- calls ---
    def call(
        self,
        kind: str,
        node: SimulatedNode,
        answer: Deferred[Any],
        hear: Callable[[Any], None],
        *allowed: type[Exception],
        refused: Callable[[Exception], None] | None = None,
        unknown: Callable[[], None] = lambda: None,
        wait_s: float = 0.0,
    ) -> None:
        """:param refused: called with a definite error. :param unknown: the node died, or nobody knows."""
        world = self._world
        self._serial += 1
        serial = self._serial
        self.open[serial] = Call(kind, node, world.time.now_us, int(wait_s * SECOND_US), unknown)

        def over(outcome: str) -> None:
            del self.open[serial]
            self.counts[f"{kind} {outcome}"] = self.counts.get(f"{kind} {outcome}", 0) + 1
            world.trace.add(f"{world.time.now_us} {kind} {serial} at {node.name}: {outcome}")

        def heard(value: Any) -> None:
            over("ok")
            hear(value)

        def failed(why: Failure) -> None:
            error = why.value
            over(type(error).__name__)
            if not isinstance(error, TaskQueueError):
                world.failures.append(f"{kind} at {node.name}: {why.getTraceback()}")
            elif isinstance(error, OutcomeUnknown):
                unknown()
            elif error.status in (500, 502) or not (error.retryable or isinstance(error, allowed)):
                world.failures.append(f"{kind} at {node.name} may not fail so: {error!r}")
            elif refused is not None:
                refused(error)

        answer.addCallbacks(heard, failed).addErrback(self._bug)

    def _bug(self, why: Failure) -> None:
        self._world.failures.append(why.getErrorMessage() if why.check(Violation) else why.getTraceback())

    def node_died(self, node: SimulatedNode) -> None:
        """Its callers' connections end: nobody knows."""
        for serial in [serial for serial, call in self.open.items() if call.node is node and call.run == node.runs]:
            self.open.pop(serial).unknown()

    def left_at(self, node: SimulatedNode, run: int) -> list[str]:
        return [call.kind for call in self.open.values() if call.node is node and call.run == run]

    def look_for_unanswered(self) -> None:
        now_us = self._world.time.now_us
        for call in self.open.values():
            if now_us - call.began_us > ANSWER_US_MAX + call.wait_us and not call.node.is_paused:
                waited_s = (now_us - call.began_us) / SECOND_US
                raise Violation(f"a caller is left unanswered: {call.kind} at {call.node.name} for {waited_s:.0f} s")

    # --- what they ask ---
    def act(self) -> None:
        nodes = [node for node in self._world.nodes if node.is_up and not node.is_paused and not node.is_stopping]
        if not nodes:
            return
        node = self._random.choice(nodes)
        acts = (
            (10, self.submit), (5, self.submit_own), (3, self.submit_many), (12, self.read), (5, self.read_local),
            (3, self.wait), (4, self.cancel), (3, self.retry), (3, self.zombie), (1, self.page), (1, self.stats),
        )  # fmt: skip
        weights, calls = zip(*acts, strict=True)
        self._random.choices(calls, weights)[0](node)

    def _submission(self, task_id: str | None = None, content: bytes = b"") -> Submission:
        r = self._random
        # Which tokens ask is not drawn: what seeds have found before they find still.
        made_by = MAKERS[self._serial % len(MAKERS)] if task_id is None else maker_of(task_id)
        return Submission(
            type="email", payload=b'"%d"' % r.randrange(1000), id=task_id, priority=r.randrange(10),
            delay_us=r.choice([None, None, None, 0, 2_000_000]), max_attempts=r.randint(1, 3),
            queue=r.choice([None, "mail"]), content_hash=content, backoff=Backoff(base_ms=200, cap_ms=2_000),
            made_by=made_by, own_only=bool(made_by),
        )  # fmt: skip

    def _own(self) -> tuple[str, bytes]:
        return f"own-{self._random.randrange(OWN_IDS)}", self._random.choice([b"a", b"a", b"a", b"b"])

    def submit(self, node: SimulatedNode) -> None:
        self._submit(node, self._submission())

    def submit_own(self, node: SimulatedNode) -> None:
        self._submit(node, self._submission(*self._own()))

    def _submit(self, node: SimulatedNode, submission: Submission) -> None:
        checkers = self._world.checkers
        if submission.id is not None:
            self._may_exist(submission)
        answer = node.queue.submit(submission)
        made = submission.made
        if submission.id is not None and made:
            self._may_exist(submission)

        def refused(error: Exception) -> None:
            if made:
                self._does_not_exist(submission)

        self.call(
            "submit", node, answer, lambda accepted: checkers.accepted(accepted.task_id, submission.content_hash),
            IdConflict, refused=refused,
        )  # fmt: skip

    def _may_exist(self, submission: Submission) -> None:
        assert submission.id is not None
        known = self._world.checkers.known(submission.id)
        known.may_exist, known.made_by = True, submission.made_by

    def _does_not_exist(self, submission: Submission) -> None:
        """A made id was submitted once: a definite refusal is the end of it (P4)."""
        assert submission.id is not None
        self._world.checkers.known(submission.id).may_exist = False

    def submit_many(self, node: SimulatedNode) -> None:
        r = self._random
        batch = [self._submission(*self._own()) if r.random() < 0.3 else self._submission() for _ in range(5)]
        for submission in batch:
            if submission.id is not None:
                self._may_exist(submission)
        # Some say that they go on, and never do.
        answer = node.queue.submit_many(batch, has_more=len(self._world.checkers.tasks) % 3 == 0)
        made = [submission.made for submission in batch]
        for submission in batch:
            if submission.id is not None:
                self._may_exist(submission)

        def hear(results: list[Accepted | TaskQueueError]) -> None:
            for result, submission, is_made in zip(results, batch, made, strict=True):
                if isinstance(result, Accepted):
                    self._world.checkers.accepted(result.task_id, submission.content_hash)
                elif result.definite and is_made:
                    self._does_not_exist(submission)
                elif not (result.retryable or not result.definite or isinstance(result, IdConflict)):
                    raise result

        def refused(error: Exception) -> None:
            for submission, is_made in zip(batch, made, strict=True):
                if is_made:
                    self._does_not_exist(submission)

        self.call("submit_many", node, answer, hear, refused=refused)

    def _some_task(self) -> str:
        if self._random.random() < 0.25 or not self._world.checkers.tasks:
            return self._own()[0]
        tasks = self._world.checkers.tasks
        names = list(tasks)
        return names[max(0, len(names) - 1 - int(self._random.expovariate(0.05)))]

    def _asker(self, task_id: str) -> Asker | None:
        """Whoever may see all, the task's own token, or one that may not know of it."""
        made_by = self._world.checkers.known(task_id).made_by or maker_of(task_id)
        own = Asker(made_by, own_only=True) if made_by else None
        return (None, own, None, own, None, NOBODYS, None, own)[self._serial % 8]

    def read(self, node: SimulatedNode) -> None:
        self._read(node, "read", 0.0)

    def wait(self, node: SimulatedNode) -> None:
        self._read(node, "wait", self._random.choice([0.5, 3.0, 8.0]))

    def _read(self, node: SimulatedNode, kind: str, wait_s: float) -> None:
        task_id, checkers = self._some_task(), self._world.checkers
        known = checkers.known(task_id)
        floor, done = known.rev, known.done
        asker = self._asker(task_id)

        def hear(read: Read) -> None:
            must_be_its_own(asker, read.row)
            checkers.heard_row(read.row, floor, is_strong=True)
            if done is not None and not read.row.state.is_final:
                raise Violation(f"{task_id} was completed and is read as {read.row.state.label} (I13)")

        def refused(error: Exception) -> None:
            if isinstance(error, NoSuchTask) and asker is not NOBODYS:
                checkers.heard_absence(task_id, floor)

        answer = node.queue.get(task_id, wait_s=wait_s, asker=asker)
        self.call(kind, node, answer, hear, NoSuchTask, refused=refused, wait_s=wait_s)

    def read_local(self, node: SimulatedNode) -> None:
        task_id, checkers = self._some_task(), self._world.checkers
        floor, asker = checkers.known(task_id).rev, self._asker(task_id)

        def hear(read: Read) -> None:
            must_be_its_own(asker, read.row)
            checkers.heard_row(read.row, floor, is_strong=False)

        self.call("local", node, node.queue.get(task_id, local=True, asker=asker), hear, NoSuchTask)

    def cancel(self, node: SimulatedNode) -> None:
        task_id = self._some_task()
        known, asker = self._world.checkers.known(task_id), self._asker(task_id)
        known.cancels += 1

        def refused(error: Exception) -> None:
            known.cancels -= 1
            if isinstance(error, NoSuchTask) and asker is not NOBODYS:
                self._world.checkers.heard_absence(task_id, floor)

        def hear(row: TaskRow) -> None:
            must_be_its_own(asker, row)
            self._hearing(floor)(row)
            if self._random.random() < 0.3 and node.is_up and not node.is_stopping:
                self._retry(node, task_id)  # while the attempt that was stopped may still be ending

        floor = known.rev
        self.call("cancel", node, node.queue.cancel(task_id, asker), hear, AlreadyFinal, NoSuchTask, refused=refused)

    def retry(self, node: SimulatedNode) -> None:
        self._retry(node, self._some_task())

    def _retry(self, node: SimulatedNode, task_id: str) -> None:
        known = self._world.checkers.known(task_id)
        floor = known.rev

        def refused(error: Exception) -> None:
            if isinstance(error, NoSuchTask):
                self._world.checkers.heard_absence(task_id, floor)

        self.call(
            "retry", node, node.queue.retry(task_id), self._hearing(floor), NotRetryable, NoSuchTask, refused=refused
        )

    def _hearing(self, floor: int) -> Callable[[TaskRow], None]:
        return lambda row: self._world.checkers.heard_row(row, floor, is_strong=True)

    def zombie(self, node: SimulatedNode) -> None:
        """A worker that was thought dead speaks, anywhere (F30)."""
        if not self.claims:
            return
        claim = self._random.choice(self.claims)
        checkers = self._world.checkers
        outcome = Completed(b'"zombie"')
        checkers.finishing(claim, outcome)
        started = checkers.known(claim.task_id).started

        def hear(_: None) -> None:
            if claim.token < started and checkers.known(claim.task_id).done != claim.token:
                raise Violation(f"a zombie's completion of {claim.task_id} was taken (F30)")
            checkers.finished(claim, outcome)

        # A primary of before the task was born knows nothing of it; no worker of the claim's own node would ask that one.
        self.call("zombie", node, node.queue.finish(claim, outcome), hear, StaleAttempt, NoSuchTask)

    def page(self, node: SimulatedNode) -> None:
        checkers = self._world.checkers

        def hear(page: TaskPage) -> None:
            for listed in page.tasks:
                checkers.heard_row(listed.row, 0, is_strong=False)

        self.call("page", node, node.queue.list(ListQuery(limit=1000, cluster=True)), hear)

    def stats(self, node: SimulatedNode) -> None:
        def hear(stats: Stats) -> None:
            if min(stats.primary) < 0:
                raise Violation(f"a negative count: {stats}")

        self.call("stats", node, node.queue.stats(cluster=True), hear)

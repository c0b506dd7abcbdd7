"""Workers that wait at their gateway: turns, repeats, orders, and what becomes of claims that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock as VirtualClock

from tq_node import limits
from tq_node.cluster.records import WORKERS_LEVEL
from tq_node.errors import Busy, Draining, NotReady, TaskQueueError
from tq_node.facade import Claim, Extended, HeldAttempt, WorkerAsk, WorkerGrant
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.node_state import NodeState
from tq_node.runtime.routing.remote_workers import RemoteWorkers
from tq_node.runtime.routing.work_stealing import WorkStealer
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId, Token

ME, OTHER = NodeId("me"), NodeId("other")
LEASE_MS = 15_000


class Local:
    """The queue here: ``ready`` tasks, which a claim gets at once, or once ``holds`` lets it."""

    def __init__(self) -> None:
        self.claims = self.of_workers = self
        self.ready = 0
        self.counted = 0
        self.taken: list[tuple[str, int]] = []
        self.holds: list[Deferred[Sequence[Claim]]] | None = None
        self.booked: dict[str, list[Claim]] = {}
        self.led = [(0, 1)]

    def attach_waiting(self, waiting: object) -> None: ...

    def ready_for(self, types: Collection[str] | None, queues: Collection[str] | None) -> int:
        self.counted += 1
        return self.ready

    def claim_for(self, ask: WorkerAsk, limit: int) -> Deferred[Sequence[Claim]]:
        self.taken.append((ask.worker, limit))
        if self.holds is not None:
            self.holds.append(Deferred())
            return self.holds[-1]
        count = min(limit, self.ready)
        self.ready -= count
        return succeed([claim(f"{ask.worker}-{number}") for number in range(count)])

    def known_of(self) -> list[tuple[int, int]]:
        return self.led

    def claimed_before(self, worker: str, claim_id: str) -> Deferred[list[Claim]]:
        return succeed(self.booked.get(claim_id, []))

    def extend(self, partition: int, worker: str, held: Sequence[HeldAttempt]) -> Deferred[list[Extended]]:
        return succeed([Extended(LEASE_MS)] * len(held))

    def counts(self) -> dict[str, int]:
        return {}


class Rig:
    """A gateway, and another node of which it asks what the test answers."""

    def __init__(self) -> None:
        self.time = VirtualClock()
        self.local = Local()
        self.asked: list[tuple[str, Any, Deferred[Any]]] = []
        self.given_back: list[Claim] = []
        self.others = [(OTHER, "other")]
        entry = SimpleNamespace(primary=ME, epoch=1)
        self.map = SimpleNamespace(
            feature_level=WORKERS_LEVEL,
            partitions=[entry],
            nodes={OTHER: SimpleNamespace(is_up=True)},
        )
        state = SimpleNamespace(
            map=self.map, local=self.local, node_id=ME, node_name="me", is_stopping=False, client=self,
            must_serve=lambda: self.local, others=lambda: self.others, partition_of=lambda task_id: 0,
            primary_of=lambda task_id, partition: ME,
        )  # fmt: skip
        self.workers = RemoteWorkers(cast("NodeState", state), Clock(self.time), lambda: None)
        self.stolen: list[tuple[WorkerAsk, Deferred[Sequence[Claim]]]] = []
        self.offers = 0
        stealer = cast("WorkStealer", SimpleNamespace(claim_for=self.steal))
        self.workers.begin(cast("LocalQueue", self.local), stealer, self.given_back.extend)

    def call(self, node: NodeId, kind: calls.PeerCall, value: Any) -> Deferred[Any]:
        self.asked.append((kind.name, value, Deferred()))
        return self.asked[-1][2]

    def steal(self, ask: WorkerAsk, limit: int) -> Deferred[Sequence[Claim]] | None:
        if not self.offers:
            return None
        self.offers -= 1
        self.stolen.append((ask, Deferred()))
        return self.stolen[-1][1]

    def ask(self, worker: str = "w", wait_s: float = 30.0, limit: int = 4, **fields: Any) -> Any:
        """What the worker hears, in a list; the request itself is its ``request``."""
        heard = Heard(self.workers.claim_for(WorkerAsk(worker, LEASE_MS, **fields), limit, wait_s))
        self.pass_by(0)
        return heard

    def come(self, tasks: int) -> None:
        self.local.ready += tasks
        self.workers.wake()
        self.pass_by(0)

    def pass_by(self, seconds: float) -> None:
        self.time.advance(seconds)
        self.time.advance(0)

    def answer(self, kind: str, value: Any) -> int:
        """Answer all calls of this kind; returns how many."""
        mine = [out for name, _, out in self.asked if name == kind]
        self.asked = [one for one in self.asked if one[0] != kind]
        for out in mine:
            out.errback(value) if isinstance(value, Exception) else out.callback(value)
        return len(mine)


class Heard(list[WorkerGrant]):
    def __init__(self, request: Deferred[WorkerGrant]) -> None:
        super().__init__()
        self.errors: list[Any] = []
        self.request = request.addCallbacks(self.append, lambda why: self.errors.append(why.value))

    @property
    def tasks(self) -> list[str]:
        (grant,) = self
        return [claim.task_id for claim in grant.claims]


def claim(task_id: str) -> Claim:
    return Claim(task_id, "email", b"1", 0, 1, Token(1, 7), None)


def before(*claims: Claim) -> calls.ClaimsBefore:
    return calls.ClaimsBefore(list(claims), [])


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- turns ---
def test_all_that_wait_get_a_share_and_the_first_in_line_is_first(rig: Rig) -> None:
    first, second, third = (rig.ask(f"w-{number}") for number in range(3))
    rig.come(2)
    assert (len(first), len(second), len(third)) == (1, 1, 0)
    rig.come(9)
    assert len(third.tasks) == 4, "as many as it asked for"


def test_lines_take_turns(rig: Rig) -> None:
    """A line with many workers is not always served first."""
    for number in range(4):
        rig.ask(f"mail-{number}", types=("mail",))
        rig.ask(f"film-{number}", types=("film",))
    for _ in range(4):
        rig.come(1)
    assert [worker for worker, _ in rig.local.taken] == ["mail-0", "film-0", "mail-1", "film-1"]


def test_a_task_costs_no_look_at_each_worker(rig: Rig) -> None:
    for number in range(500):
        rig.ask(f"w-{number}")
    rig.local.counted = 0
    rig.local.taken.clear()
    rig.come(1)
    assert (rig.local.counted, len(rig.local.taken)) == (1, 1)


def test_many_different_ones_are_looked_at_less_often(rig: Rig) -> None:
    for number in range(limits.WORKER_LINES_AT_ONCE + 1):
        rig.ask(f"w-{number}", types=(f"type-{number}",))
    rig.pass_by(1)
    rig.local.counted = 0
    rig.come(1)
    assert rig.local.counted == 0
    rig.pass_by(0.01)
    assert rig.local.counted > 0


def test_who_found_nothing_keeps_its_place_and_is_thought_of_again(rig: Rig) -> None:
    """A task came while another node was asked on its behalf."""
    rig.offers = 1
    heard = rig.ask()
    rig.come(1)
    assert (rig.local.taken, heard) == ([], [])
    rig.stolen[0][1].callback(())
    rig.pass_by(0)
    assert len(heard.tasks) == 1


def test_nothing_comes_and_it_is_answered_empty(rig: Rig) -> None:
    heard, now = rig.ask(wait_s=2), rig.ask("w-2", wait_s=0)
    assert now.tasks == []
    rig.pass_by(1.9)
    assert heard == []
    rig.pass_by(0.6)
    assert heard.tasks == []
    assert rig.workers._requests == 0


def test_a_claim_that_is_not_committed_holds_nobody_for_ever(rig: Rig) -> None:
    rig.local.holds, rig.local.ready = [], 1
    heard = rig.ask(wait_s=1)
    rig.pass_by(5)
    assert heard == []
    rig.pass_by(limits.WORKER_ANSWER_S)
    assert heard.tasks == []
    rig.local.holds[0].callback([claim("a")])
    assert rig.given_back == [claim("a")], "it has been told that there is nothing"


def test_so_many_wait_and_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_WAITS_MAX", 2)
    first = rig.ask("w-1")
    rig.ask("w-2", claim_id="c")  # which asks others first
    assert isinstance(rig.ask("w-3").errors[0], Busy)
    first.request.cancel()
    assert rig.ask("w-3").errors == []


# --- gone ---
def test_claims_of_who_has_gone_are_given_back_unless_it_may_ask_again(rig: Rig) -> None:
    rig.others.clear()
    for claim_id in ("", "c"):
        rig.local.holds, rig.local.ready = [], 1
        heard = rig.ask(claim_id=claim_id)
        heard.request.cancel()
        assert isinstance(heard.errors[0], CancelledError)
        rig.local.holds[0].callback([claim(f"of {claim_id}")])
    assert rig.given_back == [claim("of ")]


def test_a_node_that_stops_answers_all_and_gives_back_what_comes_later(rig: Rig) -> None:
    rig.local.holds, rig.local.ready = [], 1
    asking, waiting, before_that = rig.ask("w-1"), rig.ask("w-2"), rig.ask("w-3", claim_id="c")
    rig.workers.refuse()
    assert asking.tasks == waiting.tasks == []
    rig.local.holds[0].callback([claim("a")])
    assert rig.given_back == [claim("a")]
    assert isinstance(rig.ask("w-4").errors[0], Draining)
    rig.answer("claimed_before", before())
    rig.pass_by(0)
    assert before_that.tasks == []


# --- the same claim id again ---
def test_nothing_is_claimed_before_all_have_said_what_the_id_was_granted(rig: Rig) -> None:
    rig.local.ready = 5
    heard = rig.ask(claim_id="c")
    assert rig.local.taken == []
    rig.local.booked["c"] = [claim("x")]
    assert rig.answer("claimed_before", before(claim("a"))) == 1
    assert heard.tasks == ["a"]
    assert rig.local.taken == []


def test_both_nodes_claims_are_the_answer_and_each_once(rig: Rig) -> None:
    rig.local.booked["c"] = [claim("a"), claim("b")]
    heard = rig.ask(claim_id="c")
    rig.answer("claimed_before", before(claim("b"), claim("c")))
    assert sorted(heard.tasks) == ["a", "b", "c"]


def test_a_partition_without_a_primary_is_waited_for(rig: Rig) -> None:
    """The gateway was killed, and was the primary: what the id was granted there is known once another leads."""
    rig.map.partitions.append(SimpleNamespace(primary=OTHER, epoch=3))
    heard = rig.ask(claim_id="c")
    rig.answer("claimed_before", NotReady())
    rig.pass_by(limits.WORKER_AGAIN_LOOK_S)
    assert heard == []
    rig.answer("claimed_before", calls.ClaimsBefore([claim("a")], [(1, 4)]))
    assert heard.tasks == ["a"]


def test_but_not_for_ever(rig: Rig) -> None:
    rig.map.partitions.append(SimpleNamespace(primary=None, epoch=3))
    rig.others.clear()
    heard = rig.ask(claim_id="c")
    rig.local.ready = 1
    for _ in range(int(limits.WORKER_AGAIN_S / limits.WORKER_AGAIN_LOOK_S) + 1):
        assert heard == []
        rig.pass_by(limits.WORKER_AGAIN_LOOK_S)
    assert len(heard.tasks) == 1


def test_one_that_is_sent_again_elsewhere_waits_here_no_more(rig: Rig) -> None:
    rig.others.clear()
    first = rig.ask(claim_id="c")
    asked = rig.workers.claimed_here("w", "c")
    assert first.tasks == []
    assert result(asked) == calls.ClaimsBefore([], [(0, 1)])
    rig.come(1)
    assert rig.local.taken == [], "for nobody would hear of it"


def test_what_is_being_claimed_for_it_goes_to_the_one_sent_again(rig: Rig) -> None:
    rig.others.clear()
    rig.local.holds, rig.local.ready = [], 1
    first = rig.ask(claim_id="c")
    first.request.cancel()
    elsewhere = rig.workers.claimed_here("w", "c")
    assert not elsewhere.called
    rig.local.holds[0].callback([claim("a")])
    assert result(elsewhere).claims == [claim("a")]
    assert rig.given_back == []


def test_one_that_is_sent_again_here(rig: Rig) -> None:
    rig.others.clear()
    rig.local.holds, rig.local.ready = [], 1
    first = rig.ask(claim_id="c")
    again = rig.ask(claim_id="c")
    assert first.tasks == []
    rig.local.holds[0].callback([claim("a")])
    assert again.tasks == ["a"]
    assert rig.given_back == []
    assert not rig.workers._ids


def test_two_requests_of_a_worker_with_ids_of_their_own_both_wait(rig: Rig) -> None:
    rig.others.clear()
    first, second = rig.ask(claim_id="c-1"), rig.ask(claim_id="c-2")
    assert (first, second) == ([], [])
    rig.come(2)
    assert (len(first), len(second)) == (1, 1)


def test_who_goes_while_leases_are_extended_leaves_no_failure(rig: Rig) -> None:
    """Found by the simulator: what was asked at several primaries was cancelled, and failed."""
    held = HeldAttempt("a", 0, 1, Token(1, 7))
    extending: Deferred[Any] = Deferred()
    rig.local.extend = lambda partition, worker, held: extending  # type: ignore[method-assign]
    heard: list[Any] = []
    asked = rig.workers.extend("w", [held]).addErrback(lambda why: heard.append(why.type))
    asked.cancel()
    assert heard == [CancelledError]
    extending.callback([Extended(LEASE_MS)])


# --- orders ---
def test_who_is_quiet_gets_nothing_and_hears_of_it_early(rig: Rig) -> None:
    heard = rig.ask()
    rig.workers.ordered(calls.WorkerOrder("w", "quiet", 1))
    assert (heard[0].state, heard.tasks) == ("quiet", [])
    rig.local.ready = 1
    quiet = rig.ask()
    rig.come(1)
    assert quiet == []
    rig.workers.ordered(calls.WorkerOrder("w", "run", 2))
    assert quiet[0].state == "run"
    assert len(rig.ask().tasks) == 2


def test_who_is_to_stop_hears_of_it_soon(rig: Rig) -> None:
    rig.workers.ordered(calls.WorkerOrder("w", "stop", 1))
    heard = rig.ask(wait_s=30)
    rig.pass_by(limits.WORKER_STOP_WAIT_S + limits.WORKER_LOOK_S)
    assert heard[0].state == "stop"


def test_one_for_whom_something_is_asked_is_answered_once_that_is_known(rig: Rig) -> None:
    rig.offers = 1
    heard = rig.ask()
    rig.workers.ordered(calls.WorkerOrder("w"))
    assert heard == []
    rig.stolen[0][1].callback(())
    assert heard.tasks == []


def test_of_two_orders_the_later_one_holds_and_a_node_started_anew_learns_it(rig: Rig) -> None:
    rig.workers.ordered(calls.WorkerOrder("w", "run", 5))
    rig.workers.ordered(calls.WorkerOrder("w", "quiet", 4))
    assert rig.ask(wait_s=0)[0].state == "run"
    rig.workers.connected(OTHER)
    assert [value for kind, value, _ in rig.asked if kind == "worker_order"] == [calls.WorkerOrder("w", "run", 5)]


def test_nothing_of_what_is_answered_is_kept(rig: Rig) -> None:
    rig.others.clear()
    for number in range(20):
        rig.ask(f"w-{number}", claim_id="c", wait_s=number % 3).request.cancel()
        rig.ask(f"w-{number}", wait_s=number % 3)
    rig.come(7)
    rig.pass_by(5)
    workers = rig.workers
    books = (workers._ids, workers._lines, workers._waits, len(workers._until), workers._requests)
    assert not any(books), books


def result(answer: Deferred[Any]) -> Any:
    results: list[Any] = []
    answer.addCallbacks(results.append, lambda why: results.append(why.value))
    (found,) = results
    if isinstance(found, TaskQueueError):
        raise found
    return found

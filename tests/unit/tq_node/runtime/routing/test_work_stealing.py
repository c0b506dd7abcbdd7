"""Who asks whom for work, and when nobody does. What travels between nodes is held back here; ``tests/cluster`` has the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock as VirtualClock

from tests.support.workers import AnyType
from tq_node import limits
from tq_node.errors import NotPrimary
from tq_node.facade import Claim, WorkerAsk
from tq_node.partition.ready_queue import ReadySet
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.peer_calls import PeerCall
from tq_node.runtime.routing.lease_renewal import LeaseRenewer
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.routing.work_offers import WorkOffers
from tq_node.runtime.routing.work_stealing import WorkStealer
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId, Token
from tq_node.wire.errors import PeerUnreachable, WireRefusal

ME, ONE, TWO = NodeId("me"), NodeId("one"), NodeId("two")
LEASE_S = (limits.LEASE_MS - limits.LEASE_MARGIN_MS) / 1000


class Calls:
    """``PeerClient``, whose answers the test gives."""

    def __init__(self) -> None:
        self.made: list[tuple[NodeId, str, Any, Deferred[Any]]] = []

    def call(self, node: NodeId, kind: PeerCall, value: Any, task_id: str | None = None) -> Deferred[Any]:
        self.made.append((node, kind.name, value, Deferred()))
        return self.made[-1][3]

    def call_alone(self, node: NodeId, kind: PeerCall, value: Any, within_s: float) -> Deferred[Any]:
        return self.call(node, kind, value)

    def take(self) -> list[tuple[NodeId, str, Any, Deferred[Any]]]:
        made, self.made = self.made, []
        return made


class Local:
    """The queue of this node, as far as it is asked here."""

    node_id, node_name = ME, "me"

    def __init__(self) -> None:
        self.claims = self.table = self
        self.ready = ReadySet()
        self.waiting = 0
        self.held: list[Claim] = []
        self.paused: set[str] = set()
        self.led: set[int] = set()
        self.stopped: list[str] = []
        self.waiting_of: Counter[str] = Counter()

    def backlog(self, types: Collection[str] | None = None) -> int:
        return self.waiting if types is None else sum(self.waiting_of[task_type] for task_type in types)

    def leads(self, partition: int) -> bool:
        return partition in self.led

    def lease_ms(self, partition: int) -> int:
        return 5_000

    def paused_types(self) -> frozenset[str]:
        return frozenset()

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self.paused)

    def hold(self, claims: Sequence[Claim]) -> None:
        self.held += claims

    def held_claims(self) -> list[Claim]:
        return self.held

    def stop_attempt(self, task_id: str, token: Token) -> None:
        self.stopped.append(task_id)


class Slots(AnyType):
    def __init__(self) -> None:
        self.slots_free = 4
        self.types: tuple[str, ...] | None = None
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def stop_attempt(self, task_id: str, token: Token) -> None: ...


class Rig:
    def __init__(self) -> None:
        self.time = VirtualClock()
        self.calls, self.local, self.worker = Calls(), Local(), Slots()
        clock, local = Clock(self.time), cast("LocalQueue", self.local)
        forwarding = cast("PeerClient", self.calls)
        self.peers: list[NodeId] = [ONE, TWO]
        self.primary: NodeId | None = ONE
        self.given_back: list[Claim] = []
        self.may_help = True
        self.waiting_woken = 0
        self.renewing = LeaseRenewer(local, forwarding, clock, lambda _: self.primary)
        self.types: dict[NodeId, frozenset[str]] = {}
        self.lending = WorkOffers(local, forwarding, clock, lambda: self.peers, self.types.get)
        self.helping = WorkStealer(local, forwarding, self.renewing, clock, self)

    def give_back(self, claims: Sequence[Claim]) -> None:
        self.given_back += claims

    def wake_waiting(self) -> None:
        self.waiting_woken += 1

    def ask(self, own: Sequence[Claim] = (), limit: int = 4) -> list[Sequence[Claim]]:
        got: list[Sequence[Claim]] = []
        self.helping.fill(succeed(own), limit).addCallback(got.append)
        return got

    def offer(self, node: NodeId = ONE, backlog: int = 9) -> None:
        self.helping.offered(calls.WorkOffer(node, backlog))

    def answer(self, claims: list[Claim], backlog: int = 9) -> None:
        ((_, _, _, out),) = self.calls.take()
        out.callback(calls.ClaimGrant(claims, backlog))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def claim(task_id: str, partition: int = 1, queue: str = "default") -> Claim:
    return Claim(task_id, "email", b"1", partition, 1, Token(1, 7), None, queue)


# --- the loaded side ---
def test_who_has_nothing_waiting_says_nothing_and_has_no_timer(rig: Rig) -> None:
    assert rig.time.getDelayedCalls() == []
    rig.lending.noticed()
    rig.lending.noticed()
    rig.time.advance(limits.HELP_OFFER_MS / 1000)
    assert rig.calls.made == []
    assert rig.time.getDelayedCalls() == []


def test_a_backlog_is_offered_until_it_is_gone(rig: Rig) -> None:
    rig.local.waiting = 5
    rig.lending.noticed()
    rig.time.advance(limits.HELP_OFFER_MS / 1000)
    told = rig.calls.take()
    assert [(node, kind, value.backlog) for node, kind, value, _ in told] == [(ONE, "offer", 5), (TWO, "offer", 5)]
    told[0][3].callback(calls.NOTHING)
    rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
    again = rig.calls.take()
    assert [node for node, *_ in again] == [ONE], "the other has not answered the first"
    told[1][3].errback(PeerUnreachable())
    again[0][3].callback(calls.NOTHING)
    rig.local.waiting = 0
    rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
    assert rig.calls.made == []
    assert rig.time.getDelayedCalls() == []


def test_a_peer_of_an_earlier_version_gets_no_second_offer(rig: Rig) -> None:
    """It refuses the call, and has done nothing; once it is connected anew it may know better."""
    rig.local.waiting = 5
    rig.lending.noticed()
    rig.time.advance(limits.HELP_OFFER_MS / 1000)
    (_, _, _, one), (_, _, _, two) = rig.calls.take()
    one.callback(calls.NOTHING)
    two.errback(WireRefusal("this version knows no call 'offer'"))
    for _ in range(3):
        rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
        ((node, _, _, told),) = rig.calls.take()
        assert node == ONE
        told.callback(calls.NOTHING)
    rig.lending.connected(TWO)
    rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
    assert {node for node, *_ in rig.calls.take()} == {ONE, TWO}


def test_in_a_large_cluster_each_has_its_turn(rig: Rig) -> None:
    rig.peers = [NodeId(f"n{n:02}") for n in range(limits.HELP_PEERS_MAX * 2 + 3)]
    rig.local.waiting = 5
    rig.lending.noticed()
    heard: set[NodeId] = set()
    for _ in range(3):
        rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
        made = rig.calls.take()
        assert len(made) <= limits.HELP_PEERS_MAX
        heard |= {node for node, *_ in made}
    assert heard == set(rig.peers)
    rig.lending.stop()
    rig.lending.noticed()
    assert rig.time.getDelayedCalls() == []


def test_only_those_get_offers_that_can_run_what_waits(rig: Rig) -> None:
    rig.types.update({ONE: frozenset({"picture"}), TWO: frozenset({"email"})})
    rig.local.waiting = 9
    rig.local.waiting_of.update(picture=9)
    rig.lending.noticed()
    rig.time.advance(limits.HELP_OFFER_MS / 1000)
    ((node, _, offer, told),) = rig.calls.take()
    assert (node, offer.backlog) == (ONE, 9)
    told.callback(calls.NOTHING)
    rig.types[ONE] = frozenset()
    rig.time.advance(limits.HELP_OFFER_AGAIN_MS / 1000)
    assert rig.calls.take() == []
    assert rig.time.getDelayedCalls() == [], "what nobody can run is no reason to look again and again"


# --- the helper's ---
def test_nobody_is_asked_who_has_not_said_anything(rig: Rig) -> None:
    assert rig.ask() == [()]
    assert rig.calls.made == []


def test_the_most_loaded_is_asked_for_the_free_slots(rig: Rig) -> None:
    rig.worker.types = ("email", "mail")
    rig.offer(ONE, 3)
    rig.offer(TWO, 30)
    assert rig.worker.wakes == 2
    got = rig.ask(limit=3)
    ((node, kind, value, _),) = rig.calls.made
    assert (node, kind, value) == (TWO, "claim", calls.ClaimRequest("me", 3, ["email", "mail"]))
    rig.time.advance(0.5)
    rig.answer([claim("a"), claim("b")])
    assert [[one.task_id for one in claims] for claims in got] == [["a", "b"]]
    assert rig.local.held == list(got[0])
    assert rig.renewing.lease_ms(got[0][0]) == LEASE_S * 1000 - 500, "from when the question left"
    assert rig.time.getDelayedCalls() == []


def test_own_tasks_begin_at_once_and_the_rest_of_the_slots_is_asked_for_apart(rig: Rig) -> None:
    rig.offer()
    before = rig.worker.wakes
    assert rig.ask([claim("own")]) == [[claim("own")]]
    assert rig.calls.made == []
    assert rig.worker.wakes == before + 1
    assert rig.ask([claim("own")], limit=1) == [[claim("own")]]
    assert rig.worker.wakes == before + 1, "there is no slot left"


def test_one_question_at_a_time_and_the_next_one_as_soon_as_it_is_answered(rig: Rig) -> None:
    rig.offer()
    rig.ask()
    assert rig.ask(limit=1) == [()]
    assert len(rig.calls.made) == 1
    before = rig.worker.wakes
    rig.answer([claim("a")])
    assert rig.worker.wakes == before + 1
    rig.ask(limit=1)
    rig.answer([claim("b")], backlog=0)
    assert rig.ask() == [()], "it said that nothing is left"


def test_answers_without_a_task_are_followed_by_pauses_that_grow(rig: Rig) -> None:
    pauses_ms: list[int] = []
    for _ in range(9):
        rig.offer()
        rig.ask()
        rig.answer([], backlog=9)
        waited_ms = 0
        while rig.calls.made == []:
            rig.time.advance(0.1)
            waited_ms += 100
            rig.offer()
            rig.ask()
        pauses_ms.append(waited_ms)
        rig.answer([], backlog=9)
        rig.time.advance(limits.HELP_QUIET_MS_MAX / 1000)
        rig.offer()
    assert pauses_ms[0] <= 3 * limits.HELP_OFFER_MS
    assert sorted(pauses_ms) == pauses_ms
    assert pauses_ms[-1] <= limits.HELP_QUIET_MS_MAX + 200


@pytest.mark.parametrize("why", [PeerUnreachable(), NotPrimary()])
def test_a_refusal_is_no_answer_with_a_task(rig: Rig, why: Exception) -> None:
    rig.offer()
    got = rig.ask()
    ((*_, out),) = rig.calls.take()
    out.errback(why)
    assert got == [()]
    assert rig.ask() == [()]
    assert rig.calls.made == []


def test_an_old_offer_is_forgotten(rig: Rig) -> None:
    rig.offer()
    rig.time.advance(limits.HELP_OFFER_MS_MAX / 1000 + 0.1)
    assert rig.ask() == [()]
    rig.offer()
    rig.helping.forget(ONE)
    assert rig.ask() == [()]
    assert rig.calls.made == []


def test_slots_do_not_wait_for_ever_and_what_comes_late_is_given_back(rig: Rig) -> None:
    rig.offer()
    got = rig.ask()
    rig.time.advance(limits.HELP_WAIT_MS / 1000)
    assert got == [()]
    rig.answer([claim("late")])
    assert rig.given_back == [claim("late")]
    assert rig.local.held == []


def test_what_may_not_begin_here_any_more_is_given_back(rig: Rig) -> None:
    rig.offer()
    got = rig.ask()
    rig.local.led.add(2)
    rig.local.paused.add("still")
    rig.answer([claim("a"), claim("led-here", partition=2), claim("paused", queue="still")])
    assert [one.task_id for one in got[0]] == ["a"]
    assert [one.task_id for one in rig.given_back] == ["led-here", "paused"]


def test_a_node_that_is_drained_or_stops_helps_nobody(rig: Rig) -> None:
    rig.may_help = False
    rig.offer()
    assert rig.ask() == [()]
    rig.may_help = True
    rig.offer()
    rig.ask()
    rig.may_help = False
    rig.answer([claim("drained-meanwhile")])
    assert rig.given_back == [claim("drained-meanwhile")]
    rig.given_back.clear()
    rig.may_help = True
    rig.offer()
    got = rig.ask()
    rig.helping.stop()
    assert got == [()]
    rig.answer([claim("late")])
    assert rig.given_back == [claim("late")]
    assert rig.time.getDelayedCalls() == []
    rig.worker.types = ()
    assert rig.ask() == [()]


def test_a_worker_without_handlers_asks_nobody(rig: Rig) -> None:
    rig.worker.types = ()
    rig.offer()
    assert rig.ask() == [()]
    assert rig.calls.made == []


# --- leases ---
def test_each_attempt_has_a_lease_of_its_own(rig: Rig) -> None:
    """One that was not renewed is none the better for another of its partition that was."""
    kept, stale = claim("kept"), claim("stale")
    rig.local.held = [kept, stale]
    rig.renewing.granted([kept, stale], 0)
    rig.time.advance(5)
    rig.renewing.round()
    ((_, kind, asked, out),) = rig.calls.take()
    assert (kind, asked.attempts) == ("renew", [("kept", kept.token), ("stale", stale.token)])
    out.callback([True, False])
    assert rig.local.stopped == ["stale"]
    assert rig.renewing.lease_ms(kept) == LEASE_S * 1000
    assert rig.renewing.lease_ms(stale) == (LEASE_S - 5) * 1000
    rig.time.advance(LEASE_S - 5)
    assert rig.renewing.lease_ms(stale) == 0
    assert rig.renewing.lease_ms(claim("never-granted")) == 0
    assert rig.renewing.lease_ms(Claim("kept", "email", b"1", 1, 2, Token(1, 99), None)) == 0, "another attempt"


def test_what_no_longer_runs_here_leaves_no_trace(rig: Rig) -> None:
    gone = claim("gone")
    rig.renewing.granted([gone], 0)
    rig.renewing.round()
    assert rig.renewing.lease_ms(gone) == 0


# --- for remote workers ---
ANY, MAIL = WorkerAsk("w-1", 15_000), WorkerAsk("w-2", 15_000, queues=(("mail", 1),))


def test_what_no_handler_here_takes_is_offered_at_once(rig: Rig) -> None:
    rig.local.ready.set_own({"email"})
    rig.local.waiting = 1
    rig.local.ready.push("a", 1, "default", 0, 0, "email")
    rig.lending.noticed()
    rig.time.advance(0)
    assert rig.calls.made == [], "a slot may come free meanwhile"
    rig.local.ready.push("b", 1, "default", 0, 0, "far")
    rig.lending.noticed()
    rig.time.advance(0)
    offers = rig.calls.take()
    assert [(node, kind) for node, kind, _, _ in offers] == [(ONE, "offer"), (TWO, "offer")]
    rig.local.ready.push("c", 1, "default", 0, 0, "far")
    rig.lending.noticed()
    rig.time.advance(limits.HELP_OFFER_APART_MS / 1000)
    assert rig.calls.made == [], "they have not answered yet"
    offers[0][3].callback(calls.NOTHING)
    rig.time.advance(limits.HELP_OFFER_APART_MS / 1000)
    assert [node for node, *_ in rig.calls.take()] == [ONE], "and are told once they have"
    rig.lending.stop()
    assert rig.time.getDelayedCalls() == []


def test_as_many_are_asked_for_at_a_time_as_there_are(rig: Rig) -> None:
    assert rig.helping.claim_for(ANY, 4) is None
    rig.offer(backlog=9)
    asked = [rig.helping.claim_for(ANY, 4) for _ in range(4)]
    assert [one is None for one in asked] == [False, False, False, True]
    rig.calls.take()[0][3].callback(calls.ClaimGrant([claim("a")], 5))
    assert rig.waiting_woken == 2, "there is more"
    assert rig.helping.claim_for(ANY, 4) is None, "8 are asked for"
    assert rig.helping.claim_for(MAIL, 4) is not None, "of all queues; who wants these is not asked for yet"


def test_who_was_faster_is_no_reason_to_pause(rig: Rig) -> None:
    rig.offer(backlog=1)
    rig.helping.claim_for(ANY, 4)
    rig.answer([], backlog=0)
    assert rig.helping.claim_for(ANY, 4) is None
    rig.offer(backlog=1)
    assert rig.helping.claim_for(ANY, 4) is not None


def test_a_node_whose_tasks_are_of_other_queues_is_asked_ever_less_often(rig: Rig) -> None:
    asked = 0
    for _ in range(1_000):
        rig.offer(backlog=5)
        if rig.helping.claim_for(MAIL, 4) is not None:
            rig.answer([], backlog=5)
            asked += 1
        assert rig.helping.claim_for(ANY, 5) is not None, "others' queues are no reason"
        rig.answer([claim("a")], backlog=5)
        rig.time.advance(0.02)
    assert 5 < asked < 15


def test_a_node_that_is_gone_is_not_asked_over_and_over(rig: Rig) -> None:
    rig.offer(backlog=5)
    rig.helping.claim_for(ANY, 4)
    ((_, _, _, out),) = rig.calls.take()
    out.errback(PeerUnreachable())
    assert rig.helping.claim_for(ANY, 4) is None
    rig.time.advance(limits.HELP_OFFER_MS_MAX / 1000 + 1)
    assert rig.helping.claim_for(ANY, 4) is None, "its offer is old"

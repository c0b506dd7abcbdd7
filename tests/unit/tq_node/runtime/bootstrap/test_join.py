"""Joining: what members answer over HTTP, and how a joiner takes it; registration with peers that are played by the test."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock as Time
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.server import NOT_DONE_YET

from tests.support.harness import free_port
from tests.support.member_site import Answer, MemberSite, cluster_answer, join_answer, problem
from tests.support.wires import run_until
from tq_node.cluster.commands import RegisterNode, Registration, decode
from tq_node.cluster.refusals import Refusal, Refused
from tq_node.errors import NoController, NotReady
from tq_node.facade import CHALLENGE_BYTES, INVITATION_SCHEME, JOIN_SCHEME
from tq_node.runtime.bootstrap import invitation, join
from tq_node.runtime.bootstrap.invitation import ANSWER_BYTES_MAX, Denied, Invited, Inviter, JoinRefused, NotInvited
from tq_node.runtime.bootstrap.join import Joiner, JoinSettings, JoinSteps, refusal_line
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.registration import WELCOMES, Outcome, Welcomed
from tq_node.runtime.join_proof import proof
from tq_node.tokens import encode
from tq_node.types import NodeId, NodeName
from tq_node.wire.connector import DialledPeer
from tq_node.wire.errors import NotAMember, Removed, StaleSession, Unproven, WrongCluster, WrongSecret
from tq_node.wire.handshake import LocalIdentity

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture
the_reactor: Any = reactor

CLUSTER = "c" * 32
SECRET = b"handed over, thirty-two bytes ..."
NODES = {"node-1": "127.0.0.1:9001", "node-2": "127.0.0.1:9002"}
ME = Registration(NodeId("me"), NodeName("node-3"), "127.0.0.1:8003", "127.0.0.1:9003", 1, "nonce", 1, 1)


def said() -> Answer:
    return cluster_answer(CLUSTER, NODES, "node-2")


def handed() -> Answer:
    return join_answer(CLUSTER, SECRET, "127.0.0.1:9001")


@async_fixture()
async def site() -> AsyncIterator[MemberSite]:
    made = MemberSite()
    made.answers = {"GET /cluster": said, "POST /cluster/join": handed}
    yield made
    assert made.open_connections() == 0, "left open"
    await made.stop()


# --- asking ---
@deferred
async def test_a_member_says_where_to_register_and_hands_its_secret_over(site: MemberSite) -> None:
    invited = await Inviter(the_reactor, needs_secret=True).ask(site.address)
    assert invited == Invited(CLUSTER, SECRET, ("127.0.0.1:9001", "127.0.0.1:9002"), frozenset(NODES))
    assert site.asked == ["GET /cluster", "POST /cluster/join"]
    assert SECRET.hex() not in repr(invited)
    assert "handed" not in repr(invited)
    await closed(site)


@deferred
async def test_with_a_secret_of_its_own_it_asks_for_none_and_the_leader_is_first(site: MemberSite) -> None:
    invited = await Inviter(the_reactor, needs_secret=False).ask(f"localhost:{site.port}")
    assert invited == Invited(CLUSTER, None, ("127.0.0.1:9002", "127.0.0.1:9001"), frozenset(NODES))
    assert site.asked == ["GET /cluster"]
    await closed(site)


HUGE = b'{"cluster":' + b" " * ANSWER_BYTES_MAX + b"{}}"
DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (problem(503, "not_ready", "starting\nup"), "starting up"),
        ((500, b"<html>"), "it answers with status 500"),
        ((302, b""), "it answers with status 302"),
        ((200, b""), "can't be read"),
        ((200, b"\xff\xfe"), "can't be read"),
        ((200, b"[]"), "can't be read"),
        ((200, DEEP), "can't be read"),
        ((200, b'{"cluster":{"id":1}}'), "can't be read"),
        ((200, b'{"cluster":{"id":"a b"}}'), "can't be read"),
        ((200, b'{"cluster":{"id":"c","nodes":[{"name":7}]}}'), "can't be read"),
        (cluster_answer("", NODES), "is not in a cluster itself yet"),
        (cluster_answer(CLUSTER, {}), "is not in a cluster itself yet"),
        ((200, HUGE), "its answer is longer than"),
    ],
)
@deferred
async def test_answers_that_are_no_use(site: MemberSite, answer: Answer, why: str) -> None:
    site.answers["GET /cluster"] = lambda: answer
    with pytest.raises(NotInvited) as caught:
        await Inviter(the_reactor, needs_secret=True).ask(site.address)
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    await closed(site)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (problem(503, "not_ready", "the cluster is newborn"), "newborn"),
        (problem(403, "cross_origin", "no"), "no"),
        (problem(404, "not_found", "No such page"), "No such page"),
        (join_answer("d" * 32, SECRET, ""), "changed its cluster"),
        (join_answer(CLUSTER, b"short", ""), "no secret"),
        ((200, b'{"success":true,"cluster_id":"c","secret":"xyz","peer":""}'), "changed its cluster"),
        ((200, b'{"cluster_id":"' + CLUSTER.encode() + b'","secret":"zz"}'), "no secret"),
        ((200, b"{}"), "can't be read"),
    ],
)
@deferred
async def test_no_secret_for_now(site: MemberSite, answer: Answer, why: str) -> None:
    site.answers["POST /cluster/join"] = lambda: answer
    with pytest.raises(NotInvited) as caught:
        await Inviter(the_reactor, needs_secret=True).ask(site.address)
    assert why in str(caught.value)
    await closed(site)


@deferred
async def test_a_secret_that_is_kept_in_a_file_is_said_in_one_line(site: MemberSite) -> None:
    site.answers["POST /cluster/join"] = lambda: problem(403, "denied", "the secret is in a file;\ngive --secret-file")
    with pytest.raises(Denied) as caught:
        await Inviter(the_reactor, needs_secret=True).ask(site.address)
    assert str(caught.value) == f"--join {site.address}: the secret is in a file; give --secret-file"
    await closed(site)


@deferred
async def test_nobody_there() -> None:
    with pytest.raises(NotInvited, match=r"^connection refused$"):
        await Inviter(the_reactor, needs_secret=True).ask(f"127.0.0.1:{free_port()}")
    with pytest.raises(NotInvited):
        await Inviter(the_reactor, needs_secret=True).ask("no-such-host.invalid:80")


@deferred
async def test_somebody_who_never_answers(site: MemberSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invitation, "REQUEST_S_MAX", 0.1)
    site.answers["GET /cluster"] = lambda: NOT_DONE_YET
    with pytest.raises(NotInvited, match="no answer within"):
        await Inviter(the_reactor, needs_secret=True).ask(site.address)
    await closed(site)


@deferred
async def test_somebody_who_speaks_another_protocol() -> None:
    from twisted.internet.protocol import Factory, Protocol

    class Amp(Protocol):
        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.write(b"\0\4_tag")
            self.transport.loseConnection()

    port = the_reactor.listenTCP(0, Factory.forProtocol(Amp), interface="127.0.0.1")
    with pytest.raises(NotInvited):
        await Inviter(the_reactor, needs_secret=True).ask(f"127.0.0.1:{port.getHost().port}")
    await port.stopListening()


# --- a member that asks for a token, and addresses of peers ---
CHALLENGE = b"\xc4" * CHALLENGE_BYTES
OFFER = {"WWW-Authenticate": f'{JOIN_SCHEME} challenge="{CHALLENGE.hex()}"'}
OWN = b"from a file, sixteen"


def asks_for_a_token(site: MemberSite, told: Answer) -> None:
    site.answers["GET /cluster"] = lambda: problem(401, "unauthorized", "a token is needed")
    site.headers["POST /cluster/join"] = OFFER
    answers = iter((problem(403, "denied", "the secret is in a file"), told))
    site.answers["POST /cluster/join"] = lambda: next(answers)


@deferred
async def test_a_member_that_asks_for_a_token_is_shown_that_the_secret_is_known(site: MemberSite) -> None:
    asks_for_a_token(site, (200, b'{"success":true,"peers":["127.0.0.1:9002","127.0.0.1:9001"]}'))
    invited = await Inviter(the_reactor, needs_secret=False, secret=lambda: OWN, may_dial=True).ask(site.address)
    assert invited == Invited("", None, ("127.0.0.1:9002", "127.0.0.1:9001"), frozenset())
    assert site.asked == ["GET /cluster", "POST /cluster/join", "POST /cluster/join"]
    assert site.shown[-1] == f'{JOIN_SCHEME} challenge="{CHALLENGE.hex()}", proof="{proof(OWN, CHALLENGE).hex()}"'
    assert OWN.hex() not in "".join(site.shown)
    await closed(site)


@deferred
async def test_a_proof_that_is_refused_is_said(site: MemberSite) -> None:
    asks_for_a_token(site, problem(401, "unauthorized", "the cluster secret differs (--secret-file)"))
    with pytest.raises(NotInvited, match="the cluster secret differs"):
        await Inviter(the_reactor, needs_secret=False, secret=lambda: OWN, may_dial=True).ask(site.address)
    await closed(site)


@deferred
async def test_on_its_own_machine_it_is_handed_the_secret_without_a_token(site: MemberSite) -> None:
    site.answers["GET /cluster"] = lambda: problem(401, "unauthorized")
    invited = await Inviter(the_reactor, needs_secret=True).ask(site.address)
    assert invited == Invited(CLUSTER, SECRET, ("127.0.0.1:9001",), frozenset())
    await closed(site)


@deferred
async def test_certificates_alone_are_not_enough_for_a_member_that_asks_for_a_token(site: MemberSite) -> None:
    site.answers["GET /cluster"] = lambda: problem(401, "unauthorized")
    with pytest.raises(NotInvited, match="name its peer port"):
        await Inviter(the_reactor, needs_secret=False, may_dial=True).ask(site.address)
    await closed(site)


@pytest.mark.parametrize("said", ["", "Bearer", f"{JOIN_SCHEME} challenge=", f'{JOIN_SCHEME} challenge="{"c4" * 999}"'])
@deferred
async def test_a_challenge_that_is_none_is_not_answered(site: MemberSite, said: str) -> None:
    asks_for_a_token(site, (200, b"{}"))
    site.headers["POST /cluster/join"] = {"WWW-Authenticate": said}
    with pytest.raises(NotInvited, match="in a file"):
        await Inviter(the_reactor, needs_secret=False, secret=lambda: OWN, may_dial=True).ask(site.address)
    assert site.shown[-1] == ""
    await closed(site)


# --- with an invitation ---
INVITATION = encode(bytes(range(32)))


@deferred
async def test_an_invitation_is_shown_once_and_its_answer_kept(site: MemberSite) -> None:
    said = {"success": True, "cluster_id": CLUSTER, "secret": SECRET.hex(), "peer": "127.0.0.1:9001", "peers": ["p2"]}
    site.answers["POST /cluster/join"] = lambda: (200, json.dumps(said).encode())
    inviter = Inviter(the_reactor, needs_secret=True, invitation=INVITATION)
    wanted = Invited(CLUSTER, SECRET, ("127.0.0.1:9001", "p2"), frozenset())
    assert [await inviter.ask(site.address) for _ in range(3)] == [wanted] * 3
    assert site.asked == ["POST /cluster/join"]
    assert site.shown == [f"{INVITATION_SCHEME} {INVITATION}"]
    await closed(site)


@deferred
async def test_who_has_the_secret_already_shows_no_invitation(site: MemberSite) -> None:
    await Inviter(the_reactor, needs_secret=False, secret=lambda: OWN, invitation=INVITATION).ask(site.address)
    assert site.shown == [""]
    await closed(site)


@deferred
async def test_an_invitation_that_was_used_ends_the_joiner_in_one_line(site: MemberSite) -> None:
    site.answers["POST /cluster/join"] = lambda: problem(401, "unauthorized", "it was used")
    with pytest.raises(Denied, match=r"^--invitation: .*it was used$"):
        await Inviter(the_reactor, needs_secret=True, invitation=INVITATION).ask(site.address)
    site.answers["POST /cluster/join"] = lambda: problem(503, "no_controller", "later")
    with pytest.raises(NotInvited, match="later"):
        await Inviter(the_reactor, needs_secret=True, invitation=INVITATION).ask(site.address)
    await closed(site)


@deferred
async def test_an_address_where_no_http_is_spoken_is_a_peer_s_every_other_time() -> None:
    from twisted.internet.protocol import Factory, Protocol

    asked: list[bytes] = []

    class Silent(Protocol):
        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            asked.append(data[:4])
            self.transport.abortConnection()  # type: ignore[attr-defined]

    port = the_reactor.listenTCP(0, Factory.forProtocol(Silent), interface="127.0.0.1")
    address = f"127.0.0.1:{port.getHost().port}"
    inviter = Inviter(the_reactor, needs_secret=False, may_dial=True)
    by_handshake = Invited("", None, (address,), frozenset())
    assert [await inviter.ask(address) for _ in range(4)] == [by_handshake] * 4
    assert asked == [b"GET "] * 2, "what was down for a moment may be an HTTP side after all"
    with pytest.raises(NotInvited, match="speaks no HTTP"):
        await Inviter(the_reactor, needs_secret=True).ask(address)
    await port.stopListening()


async def closed(site: MemberSite) -> None:
    """Everything that was opened goes by itself."""
    for _ in range(200):
        if not site.open_connections():
            return
        await deferLater(the_reactor, 0.005)
    raise AssertionError("a connection stays open")


# --- registering, with members that are played ---
class Asked:
    """Members' HTTP sides: ``says`` by address; the last thing said is said again."""

    def __init__(self, says: dict[str, Invited | Exception] | None = None, **more: Invited | Exception) -> None:
        self.says: dict[str, list[Invited | Exception]] = {name: [said] for name, said in ((says or {}) | more).items()}
        self.asked: list[str] = []

    async def ask(self, address: str) -> Invited:
        self.asked.append(address)
        answers = self.says[address]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Connection:
    """A member's peer side, authenticated."""

    def __init__(self, answer: Welcomed | Exception, *, is_newborn: bool = False) -> None:
        self.answer = answer
        self.is_newborn = is_newborn
        self.cluster = CLUSTER
        self.is_closed = False
        self.commands: list[Any] = []

    async def call(self, command: Any, deadline_s: float, *, body: bytes) -> dict[str, bytes]:
        self.commands.append(decode(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"body": WELCOMES.encode(self.answer)}

    def close(self) -> None:
        self.is_closed = True


WELCOME = Welcomed(Outcome(7), (("1", "node-1", "127.0.0.1:9001"),))
INVITED = Invited(CLUSTER, SECRET, ("p1", "p2"), frozenset({"node-1"}))


def refused(code: Refusal) -> Welcomed:
    return Welcomed(Outcome(7, (Refused(code),)), ())


class Joining:
    """A joiner on virtual time. ``peers``: what dialling each peer address gives, in order; the last stays."""

    def __init__(self, asked: Asked, **options: Any) -> None:
        self.time = Time()
        self.asked = asked
        self.local = LocalIdentity(node_id=ME.node_id, name=ME.name, incarnation=1)
        self.peers: dict[str, list[Connection | Exception]] = {"p1": [Connection(WELCOME)], "p2": [Connection(WELCOME)]}
        self.dialled: list[tuple[str, str | None, bytes | None]] = []
        self.kept: list[Invited] = []
        self.kept_before_registering = True
        self.results: list[Any] = []
        self.lines: list[LogEvent] = []
        self._observer: Any = self._observe
        self._is_begun = False
        addresses = options.pop("addresses", list(asked.says))
        self.joiner = Joiner(
            Clock(self.time),
            JoinSettings(addresses, **options),
            JoinSteps(asked, self._dial, self._keep),
            self.local,
            ME,
            dice=random.Random(1),
        )

    async def _dial(self, address: str) -> DialledPeer:
        self.dialled.append((address, self.local.cluster, self.local.secret))
        outcomes = self.peers[address]
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return cast("DialledPeer", outcome)

    def _keep(self, invited: Invited) -> Deferred[None]:
        registered = [
            command
            for outcomes in self.peers.values()
            for c in outcomes
            if isinstance(c, Connection)
            for command in c.commands
        ]
        self.kept_before_registering &= not registered
        self.kept.append(invited)
        return succeed(None)

    def run(self, seconds: float = 0.0) -> Joining:
        if not self._is_begun:
            self._is_begun = True
            globalLogPublisher.addObserver(self._observer)
            Deferred.fromCoroutine(self.joiner.join()).addBoth(self.results.append)
        run_until(self.time, self.time.seconds() + seconds)
        return self

    def _observe(self, event: LogEvent) -> None:
        if event.get("event") in ("join_waits", "joined"):
            self.lines.append(event)

    def close(self) -> None:
        globalLogPublisher.removeObserver(self._observer)

    @property
    def refusal(self) -> str:
        (failure,) = self.results
        assert failure.check(JoinRefused), failure
        self.results = [None]
        line = str(failure.value)
        assert len(line.splitlines()) == 1
        return line

    @property
    def waits(self) -> list[str]:
        return [event["why"] for event in self.lines if event["event"] == "join_waits"]


@pytest.fixture
def started() -> Any:
    made: list[Joining] = []

    def start(asked: Asked, **options: Any) -> Joining:
        made.append(Joining(asked, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()
        assert one.time.getDelayedCalls() == []


def test_it_proves_itself_keeps_its_cluster_and_registers(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED)).run()
    assert one.results == [WELCOME]
    assert one.dialled == [("p1", CLUSTER, SECRET)]
    assert one.kept == [INVITED]
    assert one.kept_before_registering
    (connection,) = one.peers["p1"]
    assert isinstance(connection, Connection)
    assert connection.is_closed
    assert connection.commands == [RegisterNode(CLUSTER, ME)]
    assert (one.local.cluster, one.local.secret) == (CLUSTER, SECRET)


def test_the_handshake_says_the_cluster_where_nobody_else_does(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=Invited("", None, ("p1",), frozenset())), secret=lambda: b"from a file, sixteen")
    one.local.secret = b"from a file, sixteen"
    one.run()
    assert one.results == [WELCOME]
    assert one.dialled == [("p1", None, b"from a file, sixteen")]
    assert [kept.cluster_id for kept in one.kept] == [CLUSTER]
    (connection,) = one.peers["p1"]
    assert isinstance(connection, Connection)
    assert connection.commands == [RegisterNode(CLUSTER, ME)]
    assert one.local.cluster == CLUSTER


def test_a_directory_of_another_cluster_does_not_take_the_handshake_s_word(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=Invited("", None, ("p1",), frozenset())), belongs_to="d" * 32).run(1.0)
    one.joiner.stop()
    assert not one.kept
    assert f"is in cluster {CLUSTER}" in one.waits[0]


def test_a_taken_name_is_asked_for_again_at_a_slow_pace_where_members_are_not_told(
    started: Callable[..., Joining],
) -> None:
    one = started(Asked(a=Invited("", None, ("p1",), frozenset())))
    one.peers["p1"] = [Connection(refused(Refusal.NAME_TAKEN))]
    one.run(25.0)
    one.joiner.stop()
    assert len(one.dialled) == 3, "each one is an entry in the cluster's log"


def test_its_own_secret_goes_before_what_is_handed_over(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED), secret=lambda: b"from a file, sixteen").run()
    assert one.dialled == [("p1", CLUSTER, b"from a file, sixteen")]


def test_certificates_need_no_secret(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=Invited(CLUSTER, None, ("p1",), frozenset()))).run()
    assert one.dialled == [("p1", CLUSTER, None)]
    assert one.results == [WELCOME]


def test_it_asks_all_in_turn_but_not_itself(started: Callable[..., Joining]) -> None:
    asked = Asked({"localhost:1": NotInvited("x"), "other:2": NotInvited("y"), "third:3": INVITED})
    one = started(asked, own=["127.0.0.1:1"]).run()
    assert asked.asked == ["other:2", "third:3"]
    assert one.results == [WELCOME]


def test_with_nobody_but_itself_to_ask_it_waits_and_says_so(started: Callable[..., Joining]) -> None:
    one = started(Asked({"localhost:1": INVITED}), own=["127.0.0.1:1"]).run(9.0)
    assert one.asked.asked == []
    assert one.waits == ["--join: names only this node itself"]
    one.joiner.stop()
    assert one.results == [None]


def test_it_goes_on_with_back_off_says_why_every_ten_seconds_and_comes_in_at_last(
    started: Callable[..., Joining],
) -> None:
    asked = Asked(a=NotInvited("connection refused"))
    one = started(asked).run(60.0)
    assert 60 <= len(asked.asked) <= 130, "between half a second and a second, after the first few"
    assert one.waits == ["a: connection refused"] * 6
    asked.says["a"] = [INVITED]
    one.run(1.0)
    assert one.results == [WELCOME]


def test_another_one_is_asked_first_each_time(started: Callable[..., Joining]) -> None:
    asked = Asked(a=NotInvited("x"), b=NotInvited("y"))
    one = started(asked).run(0.3)
    assert asked.asked[:4] == ["a", "b", "b", "a"]
    one.joiner.stop()


def test_the_next_member_is_dialled_when_one_does_not_do(started: Callable[..., Joining]) -> None:
    for failure in (OSError("no route"), NotAMember("x"), WrongCluster("x"), ValueError("no address")):
        one = started(Asked(a=INVITED))
        one.peers["p1"] = [failure]
        one.run()
        assert one.results == [WELCOME]
        assert [peer for peer, _, _ in one.dialled] == ["p1", "p2"]


def test_an_answer_that_does_not_come_is_asked_of_the_next(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    first = Connection(NoController("no leader"))
    one.peers["p1"] = [first]
    one.run()
    assert one.results == [WELCOME]
    assert first.is_closed
    assert one.kept == [INVITED], "once"


def test_what_came_to_nothing_leaves_no_cluster_behind(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = one.peers["p2"] = [NotAMember("x")]
    one.run(0.01)
    assert (one.local.cluster, one.local.secret) == (None, None)
    assert one.kept == []
    one.joiner.stop()


def test_its_own_peer_address_is_not_dialled(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=Invited(CLUSTER, SECRET, (ME.peer, "p1"), frozenset()))).run()
    assert [peer for peer, _, _ in one.dialled] == ["p1"]


def test_a_founder_that_is_newborn_keeps_joiners_waiting(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    newborn = Connection(WELCOME, is_newborn=True)
    one.peers["p1"] = [newborn, newborn, Connection(WELCOME)]
    one.run(0.01)
    assert one.kept == []
    assert newborn.commands == []
    assert newborn.is_closed
    one.run(2.0)
    assert one.results == [WELCOME]
    assert one.waits == ["a: founds its cluster and is not ready yet"]


def test_a_founder_may_say_so_when_asked_to_register(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(NotReady("newborn")), Connection(WELCOME)]
    one.peers["p2"] = [NotAMember("x")]
    one.run(2.0)
    assert one.results == [WELCOME]


# --- refusals ---
def test_a_taken_name_is_said_at_once_and_waited_for(started: Callable[..., Joining]) -> None:
    held = Invited(CLUSTER, SECRET, ("p1",), frozenset({"node-1", "node-3"}))
    asked = Asked(a=NotInvited("x"))
    one = started(asked).run(2.0)
    asked.says["a"] = [held]
    connection = Connection(refused(Refusal.NAME_TAKEN))
    one.peers["p1"] = [connection]
    one.run(5.0)
    assert one.waits == ["a: x", "a: a member named node-3 exists; POST /cluster/remove?node=node-3 lets this node in"]
    assert len(connection.commands) == 1, "the table says it without a new entry in the log"
    asked.says["a"] = [INVITED]
    connection.answer = WELCOME
    one.run(1.0)
    assert one.results == [WELCOME]


def test_a_lost_answer_does_not_look_like_a_taken_name_for_ever(started: Callable[..., Joining]) -> None:
    """The name that the members list may be this node's own by then."""
    held = Invited(CLUSTER, SECRET, ("p1",), frozenset({"node-3"}))
    one = started(Asked(a=INVITED))
    one.asked.says["a"] = [INVITED, INVITED, held]
    one.peers["p1"] = [Connection(refused(Refusal.NAME_TAKEN)), Connection(NoController("lost")), Connection(WELCOME)]
    one.peers["p2"] = [NotAMember("x")]
    one.run(5.0)
    assert one.results == [WELCOME]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal.WRONG_CLUSTER, "belongs to another cluster"),
        (Refusal.REMOVED, "node node-3 was removed from its cluster"),
        (Refusal.STORE_CLONED, "--readmit and --join"),
        (Refusal.FEATURE_LEVEL, "install the one that its members run"),
    ],
)
def test_what_is_refused_for_good(started: Callable[..., Joining], refusal: Refusal, words: str) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(refused(refusal))]
    assert words in one.run().refusal


def test_what_is_refused_for_now(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(refused(Refusal.NOT_FOUNDED)), Connection(WELCOME)]
    assert one.run(1.0).results == [WELCOME]
    assert one.waits == ["a: refuses for now: not founded"]


def test_another_secret_is_final(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [WrongSecret("the cluster secret of the two nodes differs")]
    assert one.run().refusal.startswith("the cluster secret differs: the member at p1 and this node")


def test_a_removed_id_is_final_in_the_handshake_too(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Removed("x")]
    assert "was removed" in one.run().refusal


def test_a_copy_is_found_out_in_the_handshake_too(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [StaleSession("x")]
    one.run()
    assert one.results[0].value.is_copy
    assert "--readmit" in one.refusal
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(refused(Refusal.STORE_CLONED))]
    one.run()
    assert one.results[0].value.is_copy
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Removed("x")]
    one.run()
    assert not one.results[0].value.is_copy, "of nobody else"


def test_a_refusal_without_proof_ends_nobody(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Unproven("127.0.0.1:1 says removed")]
    assert one.run().results == [WELCOME], "another member takes it"


def test_whoever_leads_is_asked_next(started: Callable[..., Joining]) -> None:
    members = (("1", "node-1", "p1"), ("2", "node-2", "p2"), ("3", "node-3", "p3"))
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(Welcomed(None, members, "3"))]
    one.peers["p3"] = [Connection(WELCOME)]
    assert one.run().results == [WELCOME]
    assert [address for address, _, _ in one.dialled] == ["p1", "p3"]


def test_two_that_send_it_to_one_another_are_not_asked_for_ever(started: Callable[..., Joining]) -> None:
    members = (("1", "node-1", "p1"), ("2", "node-2", "p2"))
    one = started(Asked(a=INVITED))
    one.peers["p1"] = [Connection(Welcomed(None, members, "2"))]
    one.peers["p2"] = [Connection(Welcomed(None, members, "1"))]
    one.run()
    assert [address for address, _, _ in one.dialled] == ["p1", "p2"]
    assert one.waits == ["a: the member at p2: does not lead, and names no leader that could be dialled"]
    one.joiner.stop()


def test_who_denies_the_secret_ends_it_unless_another_hands_it_over(started: Callable[..., Joining]) -> None:
    denied = Denied("--join a: in a file")
    assert started(Asked(a=denied, b=NotInvited("x"))).run().refusal == "--join a: in a file"
    assert started(Asked(a=denied, b=INVITED)).run().results == [WELCOME]


def test_a_directory_that_belongs_to_a_cluster_joins_no_other(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED), belongs_to="d" * 32).run(1.0)
    assert one.waits == [f"a: is in cluster {CLUSTER}, and this directory belongs to {'d' * 32}"]
    assert one.dialled == []
    one.joiner.stop()
    assert started(Asked(a=INVITED), belongs_to=CLUSTER).run().results == [WELCOME]


def test_nor_does_a_node_that_may_be_registered_already(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=INVITED))
    one.asked.says["a"] = [INVITED, Invited("d" * 32, SECRET, ("p1",), frozenset())]
    one.peers["p1"] = one.peers["p2"] = [Connection(NoController("no answer"))]
    one.run(3.0)
    assert {cluster for _, cluster, _ in one.dialled} == {CLUSTER}
    assert len(one.kept) == 1
    one.joiner.stop()


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_has_one_line(refusal: Refusal) -> None:
    line = refusal_line(refusal, "node-3")
    assert len(line.splitlines()) == 1
    assert "{" not in line


# --- stopping ---
def test_stop_while_it_waits(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=NotInvited("x"))).run(1.0)
    one.joiner.stop()
    one.joiner.stop()
    assert one.results == [None]


def test_stop_before_it_begins(started: Callable[..., Joining]) -> None:
    one = started(Asked(a=NotInvited("x")))
    one.joiner.stop()
    assert one.run(1.0).results == [None]


@deferred
async def test_stop_in_the_middle_of_a_request(site: MemberSite) -> None:
    site.answers["GET /cluster"] = lambda: NOT_DONE_YET
    joiner = Joiner(
        Clock(the_reactor),
        JoinSettings([site.address, site.address]),
        JoinSteps(
            Inviter(the_reactor, needs_secret=True),
            lambda _: pytest.fail("nobody was invited"),
            lambda _: succeed(None),
        ),
        LocalIdentity(node_id=ME.node_id, name=ME.name, incarnation=1),
        ME,
    )
    joining_ = Deferred.fromCoroutine(joiner.join())
    for _ in range(200):
        if site.asked:
            break
        await deferLater(the_reactor, 0.005)
    joiner.stop()
    assert await joining_ is None
    await closed(site)
    assert site.asked == ["GET /cluster"]


def test_the_times_are_those_of_the_contract() -> None:
    assert (join.AGAIN_FIRST_S, join.AGAIN_S_MAX, join.SAID_EVERY_S) == (0.1, 1.0, 10.0)
    assert (invitation.REQUEST_S_MAX, invitation.ANSWER_BYTES_MAX) == (2.0, 4 * 2**20)

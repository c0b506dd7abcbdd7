"""Who has the secret and says what no member says: it changes nothing, no node ends of it, and each starts again (A5, A9)."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.contract.test_control_plane import Three
from tests.support.intruder import Intruder
from tests.support.planes import CLUSTER, SECRET, PlaneNode, pause, until
from tests.support.wire_kinds import make_cluster_ca, peer_tls
from tq_node.cluster.commands import FoundCluster, NodeDown, PauseQueue, RegisterNode, Registration, RemoveNode
from tq_node.cluster.commands import encode as encode_command
from tq_node.cluster.records import ACCESS_LEVEL, ClusterSettings
from tq_node.errors import NotReady, TaskQueueError
from tq_node.raft.messages import Append, AppendReply, Entry, EntryKind, Heartbeat, SnapshotChunk, Vote
from tq_node.types import NodeId, NodeName
from tq_node.wire.codec import CALLS, ForwardedCall
from tq_node.wire.commands import Confirm, Data, Evidence, Forward, Lane, Propose, Register
from tq_node.wire.commands import Heartbeat as Beat
from tq_node.wire.errors import MalformedBox, WrongCertificate, WrongNode

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture
NOBODY = "9" * 32


class Scene:
    """A cluster of three, and an intruder who speaks to ``victim``."""

    def __init__(self, three: Three) -> None:
        self.three = three
        self.intruders: list[Intruder] = []
        self.last: PlaneNode

    def intruder(self, name: str, node_id: str, incarnation: int = 1) -> Intruder:
        made = Intruder(CLUSTER, SECRET, name, node_id, incarnation=incarnation)
        self.intruders.append(made)
        return made

    async def impostor(self) -> tuple[PlaneNode, Intruder]:
        """One member is down, and somebody says to be its next run. Returns a victim that follows, too."""
        gone = next(node for node in self.three.up if not node.plane.consensus.core.is_leader)
        await self.three.stop(gone)
        await until(lambda: self.three.is_down_everywhere(gone.node_id))
        self.last = gone
        return gone, self.intruder(gone.name, gone.node_id, gone.incarnation + 1)

    async def all_is_well(self) -> None:
        """Nobody has ended; whoever was away comes back, and the cluster takes orders."""
        assert [node.outside.failures for node in self.three.up] == [[] for _ in self.three.up]
        await until(lambda: self.three.leader() is not None, 30.0)
        await until(lambda: all(node.plane.consensus.core.claim is None for node in self.three.up), 30.0)


@async_fixture()
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(Three(tmp_path))
    await made.three.form()
    yield made
    for intruder in made.intruders:
        await intruder.stop()
    for node in list(made.three.up):
        await made.three.stop(node)
    for node in made.three.nodes:
        assert node.outside.failures == []


async def error_of(answer: Any) -> TaskQueueError:
    with pytest.raises(TaskQueueError) as caught:
        await answer
    return caught.value


@deferred
async def test_who_is_no_member_may_register_and_nothing_else(scene: Scene) -> None:
    """A5 (b): on either lane, whatever it says; and it is told that nothing was done."""
    victim = scene.three.nodes[1]
    stranger = scene.intruder("mallory", NOBODY)
    consensus = await stranger.dial(victim.address, Lane.CONSENSUS)
    bulk = await stranger.dial(victim.address, Lane.BULK)
    term = victim.plane.consensus.core.term
    for command in (Beat, Evidence, Propose):
        for body in (b"", b"\x01garbage", encode_command(PauseQueue("mail"))):
            assert isinstance(await error_of(consensus.call(command, 5.0, body=body)), NotReady)
    shutdown = CALLS.encode([ForwardedCall("shutdown", b"\x01\x90")])
    for body in (b"", b"garbage", shutdown):
        error = await error_of(bulk.call(Forward, 5.0, calls=body))
        assert isinstance(error, NotReady if body == shutdown else MalformedBox)
        assert error.definite
    stranger.raft(consensus, Vote(NodeId(NOBODY), victim.node_id, term + 1, 10**6, term, False, True))
    consensus.tell(Confirm, body=b"\x01garbage")
    bulk.tell(Data, body=b"garbage")
    await pause(0.3)
    assert consensus.is_open()
    assert bulk.is_open()
    assert victim.plane.consensus.core.term == term
    assert victim.plane.map.paused_queues == ()
    await scene.all_is_well()


@deferred
async def test_garbage_is_malformed_and_definite_and_closes_nothing(scene: Scene) -> None:
    """A5 (c): as whoever it likes, to whoever leads; ``Register`` and ``Propose`` of garbage ended a node with code 70."""
    leader = scene.three.leader()
    assert leader is not None
    stranger = await scene.intruder("mallory", NOBODY).dial(leader.address, Lane.CONSENSUS)
    _, impostor = await scene.impostor()
    member = await impostor.dial(leader.address, Lane.CONSENSUS)
    one = scene.three.nodes[0].registration()
    bodies = [
        b"",
        b"\x00",
        b"\x01",
        b"\x01garbage",
        b"\x01\xc1",
        b"\x01\x91\x63",
        b"\x01\xa2\xff\xfe",
        b"\x01" + b"\x91" * 5_000,
        b"\x02" + encode_command(RegisterNode(CLUSTER, one))[1:],
        encode_command(RegisterNode(CLUSTER, one)),
        encode_command(FoundCluster(CLUSTER, "mine", ClusterSettings(1, 1, 1, 1), one)),
        encode_command(NodeDown(leader.node_id, scene.three.session(leader), "silence")),
    ]
    for body in bodies:
        for connection, command in ((stranger, Register), (member, Propose), (member, Register)):
            error = await error_of(connection.call(command, 5.0, body=body))
            assert isinstance(error, MalformedBox), (command, body, error)
            assert error.definite
        for told in (Beat, Evidence):
            if body[:3] == b"\x01ga" or len(body) < 2:
                assert isinstance(await error_of(member.call(told, 5.0, body=body)), MalformedBox)
    assert stranger.is_open()
    assert member.is_open()
    await scene.all_is_well()


@deferred
async def test_a_registration_says_only_what_a_node_can_be(scene: Scene) -> None:
    leader = scene.three.leader()
    assert leader is not None
    stranger = await scene.intruder("mallory", NOBODY).dial(leader.address, Lane.CONSENSUS)
    good = Registration(NodeId(NOBODY), NodeName("mallory"), "", "127.0.0.1:1", 1, "nonce", 1, 1)
    for changed in (
        {"incarnation": 2**63},
        {"incarnation": 2},
        {"incarnation": -1},
        {"name": "another"},
        {"name": ""},
        {"name": "with space"},
        {"node_id": "8" * 32},
        {"peer": ""},
        {"peer": "x" * 301},
        {"http": "\n"},
        {"nonce": ""},
        {"nonce": "n" * 100_000},
        {"feature_level_min": -1},
        {"feature_level_max": 2**40},
        {"feature_level_min": 2},
    ):
        values = {**{name: getattr(good, name) for name in good.__struct_fields__}, **changed}
        body = encode_command(RegisterNode(CLUSTER, Registration(**values)))
        assert isinstance(await error_of(stranger.call(Register, 5.0, body=body)), MalformedBox), changed
    assert len(leader.plane.map.nodes) == 3
    await scene.all_is_well()


@deferred
async def test_absurd_numbers_of_consensus_are_refused(scene: Scene) -> None:
    """A5 (d), (e): each of these was taken, or marked the store as failed for good."""
    leader = scene.three.leader()
    assert leader is not None
    gone, impostor = await scene.impostor()
    me, victims = gone.node_id, list(scene.three.up)
    for victim in victims:
        core = victim.plane.consensus.core
        term, it = core.term, victim.node_id
        for message in (
            Heartbeat(me, it, 2**62, 2**62, 1),
            Heartbeat(me, it, term + 1, 2**62, 1),
            Append(me, it, 2**62, 0, 0, 0),
            Append(me, it, term + 1, core.log.last_index, core.log.last_term, 2**62),
            AppendReply(me, it, 2**62, 1),
            Vote(me, it, 2**62, 1, 1, False, True),
            Append(
                *(me, it, term + 1, core.log.last_index, core.log.last_term, 0),
                (Entry(term + 1, core.log.last_index + 1, EntryKind.DATA, b"garbage"),),
            ),
            Append(
                *(me, it, term + 1, core.log.last_index, core.log.last_term, 0),
                (Entry(term + 1, core.log.last_index + 1, EntryKind.CONFIGURATION, b"garbage"),),
            ),
            SnapshotChunk(me, it, term + 1, core.log.last_index + 9, term, core.configuration, 1, 0, 7, b"garbage"),
            AppendReply(me, it, term, core.log.last_index + 1_000),
        ):
            connection = await impostor.dial(victim.address, Lane.CONSENSUS)
            before = core.log.last_index
            impostor.raft(connection, message)
            await until(lambda: not connection.is_open() or victim.plane.consensus.core.term > term)  # noqa: B023
            connection.close()
            assert core.term <= term + 3, message
            assert core.log.last_index <= before + 5, message
    await scene.all_is_well()
    for victim in victims:
        await scene.three.stop(victim)
    for node in scene.three.nodes:
        await scene.three.start(node)
    await until(scene.three.is_whole, 30.0)


@deferred
async def test_a_leaders_claim_beyond_the_log_shows_until_an_entry_agrees(scene: Scene) -> None:
    """Two of three were told so, and ended with code 74 for good: now they elect, and the cluster goes on."""
    gone, impostor = await scene.impostor()
    for victim in list(scene.three.up):
        connection = await impostor.dial(victim.address, Lane.CONSENSUS)
        core = victim.plane.consensus.core
        impostor.raft(
            connection, Heartbeat(gone.node_id, victim.node_id, core.term + 1, core.log.last_index + 1_000, 1)
        )
        await until(lambda: core.claim is not None)  # noqa: B023
        connection.close()
    await impostor.stop()
    await scene.three.start(gone)
    await scene.all_is_well()
    await until(scene.three.is_whole, 30.0)
    await scene.three.nodes[0].plane.membership.propose(PauseQueue("mail"))


@deferred
async def test_a_name_and_its_id_belong_together(scene: Scene) -> None:
    """A9: the key of one node, and the id of another that is down, with a later incarnation: it locked that one out."""
    gone, _ = await scene.impostor()
    other = scene.three.up[0]
    for name, incarnation in ((other.name, 50), ("mallory", 50), (gone.name, 2**40)):
        intruder = scene.intruder(name, gone.node_id, incarnation)
        for victim in scene.three.up:
            for lane in Lane:
                with pytest.raises(WrongNode):
                    await intruder.dial(victim.address, lane)
    await scene.three.start(gone)
    await until(scene.three.is_whole)


# --- with certificates ---
@deferred
async def test_the_certificate_of_a_removed_node_lets_nobody_in(tmp_path: Path) -> None:
    """Whoever has taken its key comes under a new id, and its old name: registering is open to those who prove themselves."""
    folder = tmp_path / "ca"
    assert make_cluster_ca(folder, "node-1", "node-2", "node-3").returncode == 0
    again = tmp_path / "again"
    again.mkdir()
    for file in ("ca.crt", "ca.key"):
        (again / file).write_bytes((folder / file).read_bytes())
    assert make_cluster_ca(again, "node-2", "node-3").returncode == 0
    three = Three(tmp_path / "nodes", tls=functools.partial(peer_tls, folder), feature_level=ACCESS_LEVEL)
    await three.form()
    digests = {node.node_id: node.plane.membership.shown.own() for node in three.nodes}
    await until(lambda: all(node.plane.map.certificates.keys() == digests.keys() for node in three.up))
    assert {node_id: shown[-1] for node_id, shown in three.nodes[0].plane.map.certificates.items()} == digests
    gone = next(node for node in reversed(three.up) if not node.plane.consensus.core.is_leader)
    await three.stop(gone)
    await until(lambda: three.is_down_everywhere(gone.node_id))
    at = three.up[0].plane
    thief = Intruder(CLUSTER, SECRET, gone.name, NOBODY, tls=peer_tls(folder, gone.name))
    for node in three.up:
        (await thief.dial(node.address, Lane.BULK)).close()  # the name is taken, but it is no stranger
    await at.membership.propose(RemoveNode(gone.node_id, at.membership.session_of(gone.node_id)))
    await until(lambda: all(not node.plane.map.nodes[gone.node_id].is_member for node in three.up))
    for node in three.up:
        for lane in Lane:
            with pytest.raises(WrongCertificate, match=f"that of node {gone.name}, which was removed"):
                await thief.dial(node.address, lane)
    await thief.stop()
    renewed = Intruder(CLUSTER, SECRET, gone.name, NOBODY, tls=peer_tls(again, gone.name))
    for node in three.up:
        (await renewed.dial(node.address, Lane.CONSENSUS)).close()
    await renewed.stop()
    for node in list(three.up):
        await three.stop(node)
    for node in three.nodes:
        assert node.outside.failures == []

"""Entries as bytes: pinned numbers, damage, newer kinds (F44)."""

from __future__ import annotations

import typing

import msgspec
import pytest

from tests.unit.tq_node.cluster.tables import CLUSTER_ID, registration
from tq_node.cluster import commands as c
from tq_node.cluster.map import RULES
from tq_node.cluster.records import ACCESS_LEVEL, ClusterSettings, InvitationEntry
from tq_node.cluster.rules_nodes import entry_of
from tq_node.tokens import Quotas, Role, TokenEntry
from tq_node.types import Backoff, Epoch, HandledType, NodeId, PartitionId, PauseEntry

A, B = NodeId("a" * 32), NodeId("b" * 32)
P, E = PartitionId(3), Epoch(7)
EVERY: list[tuple[int, c.AnyCommand]] = [
    (1, c.FoundCluster(CLUSTER_ID, "x", ClusterSettings(64, 3, 9, 3), registration(1))),
    (2, c.RegisterNode(CLUSTER_ID, registration(2))),
    (3, c.NodeDown(A, 5, "silence")),
    (4, c.DrainNode(A, then_remove=True)),
    (5, c.UndrainNode(A)),
    (6, c.RemoveNode(A, 5, (P,))),
    (10, c.AlterIsr(A, 5, (c.IsrStep(P, E, 9, (A, B)),))),
    (11, c.StepDown(A, 5, (c.Led(P, E),))),
    (12, c.PlanPrimary((c.PrimaryStep(P, E, 9, B),))),
    (13, c.ElectPrimary((c.PrimaryStep(P, E, 9),))),
    (14, c.RaiseMinIsr((c.Seen(P, E, 9),))),
    (15, c.UnsafeRecover(P, E, 9, A)),
    (20, c.BeginMove((c.MoveStep(P, E, 9, (B,), (A,)),))),
    (21, c.FinishMove((c.Seen(P, E, 9),))),
    (22, c.AbortMove((c.Seen(P, E, 9),))),
    (30, c.PauseQueue("q")),
    (31, c.ResumeQueue("q")),
    (32, c.Rebalance()),
    (33, c.RebalanceDone(8)),
    (34, c.RaiseFeatureLevel(2)),
    (35, c.NoteThreeVoters()),
    (36, c.NoteHandlers()),
    (37, c.PutToken(TokenEntry("ops", b"h" * 32, (Role.VIEW, Role.WORK), ("q",), 7, Quotas(0.5, 2), 5, "first"))),
    (38, c.RevokeToken("ops")),
    (39, c.PutInvitation(InvitationEntry(b"h" * 32, 9, "ops"), 8)),
    (40, c.TakeInvitation(b"h" * 32, 8)),
    (41, c.NoteCertificate(A, b"h" * 32)),
    (44, c.PutType(HandledType("email", "mail", 7, 500, Backoff("fixed", 1, 2, False)))),
    (45, c.DeleteType("email")),
    (46, c.AnnounceTypes((HandledType("email"), HandledType("image", "big")))),
    (47, c.Pause(PauseEntry("type", "email", "it bounces", 5, 9, "ann"))),
    (48, c.Resume("queue", "mail", 9)),
]
LEVELS: dict[type, int] = {
    c.NoteHandlers: 2,
    **dict.fromkeys((c.PutToken, c.RevokeToken, c.PutInvitation, c.TakeInvitation, c.NoteCertificate), 3),
    **dict.fromkeys((c.PutType, c.DeleteType, c.AnnounceTypes, c.Pause, c.Resume), 4),
}
"""Of the kinds that came after the first release."""


@pytest.mark.parametrize(("number", "command"), EVERY, ids=lambda value: type(value).__name__)
def test_every_kind_has_its_number_and_comes_back(number: int, command: c.AnyCommand) -> None:
    data = c.encode(command)
    assert (data[0], msgspec.msgpack.decode(data[1:])[0]) == (1, number)
    assert c.decode(data) == command
    assert c.feature_level_of(command) == LEVELS.get(type(command), 1)


def test_every_kind_is_in_the_list_and_has_a_rule() -> None:
    kinds = set(typing.get_args(c.AnyCommand))
    assert {type(command) for _, command in EVERY} == kinds
    assert set(RULES) == kinds - {c.FoundCluster}


def test_the_number_of_a_kind_that_is_gone_is_not_used_again() -> None:
    assert not any(number == 23 for number, _ in EVERY)
    with pytest.raises(c.UnreadableCommand):
        c.decode(b"\x01" + msgspec.msgpack.encode([23, A, 5, [[P, E, 9, B]]]))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x02\x91\x01", b"\x01", b"\x01\x91\x63", b"\x01\x92\x1e\x01", b"\x01\xff"]
)
def test_f44_what_cannot_be_read_stops_the_node(data: bytes) -> None:
    with pytest.raises(c.UnreadableCommand):
        c.decode(data)


def test_f44_fields_that_a_later_release_adds_are_skipped() -> None:
    data = b"\x01" + msgspec.msgpack.encode([5, A, "", "new"])
    assert c.decode(data) == c.UndrainNode(A)


ORDERS: dict[str, c.Order] = {
    "drain node node-1": c.DrainNode(A),
    "remove node node-1": c.DrainNode(A, then_remove=True),
    "let node node-1 stay": c.UndrainNode(A),
    "remove node " + B: c.RemoveNode(B, 7),
    "recover partition 3 from node " + B + ", whatever it lacks": c.UnsafeRecover(PartitionId(3), Epoch(1), 1, B),
    "pause queue 'mail'": c.PauseQueue("mail"),
    "resume queue 'mail'": c.ResumeQueue("mail"),
    "spread the partitions evenly": c.Rebalance(),
    "keep token 'ops' with roles view, work": c.PutToken(TokenEntry("ops", b"h" * 32, (Role.VIEW, Role.WORK))),
    "end token 'ops'": c.RevokeToken("ops"),
    "set defaults of type 'email'": c.PutType(HandledType("email")),
    "forget the defaults of type 'email'": c.DeleteType("email"),
    "take the defaults of 1 types as a worker has them": c.AnnounceTypes((HandledType("email"),)),
    "pause type 'email'": c.Pause(PauseEntry("type", "email")),
    "resume type 'email'": c.Resume("type", "email", 9),
    "invite a node": c.PutInvitation(InvitationEntry(b"h" * 32, 9), 8),
}


@pytest.mark.parametrize("words", ORDERS)
def test_f44_an_order_names_who_gave_it_from_the_access_level_on(words: str) -> None:
    order = ORDERS[words]
    assert c.sentence_of(order, {A: entry_of(registration(1, node_id=A), 1)}) == words
    assert c.ordered_by(order, "ann", ACCESS_LEVEL - 1) is order
    assert c.ordered_by(order, "", ACCESS_LEVEL) is order
    named = c.ordered_by(order, "ann", ACCESS_LEVEL)
    assert (named.by, msgspec.structs.replace(named, by="")) == ("ann", order)
    assert c.decode(c.encode(named)) == named
    earlier = b"\x01" + msgspec.msgpack.encode(msgspec.msgpack.decode(c.encode(order)[1:])[:-1])
    assert c.decode(earlier) == order, "an entry from before has no name at its end"


def test_every_command_with_a_name_at_its_end_is_an_order() -> None:
    named = {kind for kind in typing.get_args(c.AnyCommand) if "by" in kind.__struct_fields__}
    assert named == set(typing.get_args(c.Order)) == {type(order) for order in ORDERS.values()}
    assert all(kind.__struct_fields__[-1] == "by" for kind in named)


def test_a_full_batch_stays_far_below_a_raft_message() -> None:
    steps = tuple(c.MoveStep(PartitionId(1_000), Epoch(10**9), 10**9, (A, B), (A, B)) for _ in range(256))
    assert len(c.encode(c.BeginMove(steps))) < 64 * 1024

"""Who may join, as the cluster map keeps it: invitations are used once, certificates of removed nodes are known for ever."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.cluster.tables import Table, nid, replace
from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster.map import decode, encode
from tq_node.cluster.records import ACCESS_LEVEL, InvitationEntry, NodeStatus
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_map_sound

NOW_US = 1_000


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def invitation(number: int = 1, lasts_us: int = 10) -> c.PutInvitation:
    return c.PutInvitation(InvitationEntry(hash_of(number), NOW_US + lasts_us, "ops"), NOW_US)


class TestInvitations:
    def test_one_is_used_once(self) -> None:
        table = Table(level=ACCESS_LEVEL)
        assert not table.refusals(invitation())
        assert not table.refusals(c.TakeInvitation(hash_of(1), NOW_US + 9))
        assert table.refusals(c.TakeInvitation(hash_of(1), NOW_US + 9)) == [Refusal.NOT_NEEDED]
        assert table.map.invitations == ()

    def test_one_that_nobody_gave_lets_nobody_in(self) -> None:
        table = Table(level=ACCESS_LEVEL)
        assert not table.refusals(invitation())
        assert table.refusals(c.TakeInvitation(hash_of(2), NOW_US)) == [Refusal.NOT_NEEDED]
        assert len(table.map.invitations) == 1

    def test_one_that_has_expired_lets_nobody_in_and_goes_with_the_next(self) -> None:
        table = Table(level=ACCESS_LEVEL)
        assert not table.refusals(invitation(1, 10))
        assert table.refusals(c.TakeInvitation(hash_of(1), NOW_US + 10)) == [Refusal.NOT_NEEDED]
        assert not table.refusals(c.PutInvitation(InvitationEntry(hash_of(2), NOW_US + 99), NOW_US + 10))
        assert [one.hash for one in table.map.invitations] == [hash_of(2)]

    def test_there_is_a_bound_to_them(self) -> None:
        table = Table(level=ACCESS_LEVEL)
        for number in range(limits.INVITATIONS_MAX):
            assert not table.refusals(invitation(number))
        assert table.refusals(invitation(1_000)) == [Refusal.TOO_MANY]
        assert not table.refusals(c.PutInvitation(InvitationEntry(hash_of(1_000), NOW_US + 99), NOW_US + 10)), (
            "all ended"
        )
        assert len(table.map.invitations) == 1

    @pytest.mark.parametrize(
        "entry",
        [
            InvitationEntry(b"h" * 31, 9),
            InvitationEntry(hash_of(1), -1),
            InvitationEntry(hash_of(1), 2**62 + 1),
            InvitationEntry(hash_of(1), 9, "no name"),
        ],
    )
    def test_what_is_none_is_refused(self, entry: InvitationEntry) -> None:
        table = Table(level=ACCESS_LEVEL)
        assert table.refusals(c.PutInvitation(entry, 0)) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, invitations=(entry,)))

    def test_twice_the_same_is_refused(self) -> None:
        table = Table(level=ACCESS_LEVEL)
        assert not table.refusals(invitation())
        assert table.refusals(invitation()) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, invitations=table.map.invitations * 2))


class TestCertificates:
    def table(self) -> Table:
        table = Table(3, level=ACCESS_LEVEL)
        for number in (1, 2, 3):
            assert not table.refusals(c.NoteCertificate(nid(number), hash_of(number)))
        return table

    def remove(self, table: Table, number: int) -> None:
        node = replace(table.map.nodes[nid(number)], status=NodeStatus.REMOVED)
        table.map = replace(table.map, nodes={**table.map.nodes, nid(number): node})

    def test_a_removed_node_s_is_known(self) -> None:
        table = self.table()
        assert table.map.removed_owner(hash_of(3)) is None
        self.remove(table, 3)
        owner = table.map.removed_owner(hash_of(3))
        assert owner is not None
        assert owner.node_id == nid(3)
        assert table.map.removed_owner(hash_of(2)) is None
        assert table.map.removed_owner(hash_of(9)) is None
        assert decode(encode(table.map)) == table.map

    def test_one_that_a_member_shows_too_is_not_refused(self) -> None:
        """One certificate for all nodes: to remove one node must not shut the others out."""
        table = self.table()
        assert not table.refusals(c.NoteCertificate(nid(2), hash_of(3)))
        self.remove(table, 3)
        assert table.map.removed_owner(hash_of(3)) is None

    def test_the_last_few_are_kept(self) -> None:
        table = self.table()
        for number in (*range(10, 10 + limits.CERTIFICATES_OF_NODE_MAX), 11, 11):
            assert not table.refusals(c.NoteCertificate(nid(1), hash_of(number)))
        assert table.map.certificates[nid(1)] == tuple(map(hash_of, (10, 12, 13, 11)))
        assert list(table.map.certificates) == sorted(table.map.certificates)

    def test_of_nobody_and_of_who_was_removed_none_is_kept(self) -> None:
        table = self.table()
        self.remove(table, 3)
        for number in (3, 9):
            assert table.refusals(c.NoteCertificate(nid(number), hash_of(7))) == [Refusal.NO_SUCH_NODE]
        assert table.refusals(c.NoteCertificate(nid(1), b"short")) == [Refusal.BAD_SETTINGS]

    def test_maps_that_were_not_made_here(self) -> None:
        table = self.table()
        good = table.map.certificates
        assert is_map_sound(table.map)
        for bad in ({nid(9): (hash_of(1),)}, {nid(1): ()}, {nid(1): (b"short",)}, {nid(1): (hash_of(1),) * 2},
                    {nid(1): tuple(map(hash_of, range(limits.CERTIFICATES_OF_NODE_MAX + 1)))}):  # fmt: skip
            assert not is_map_sound(replace(table.map, certificates={**good, **bad}))


def test_f44_below_the_level_the_commands_are_refused() -> None:
    table = Table(level=ACCESS_LEVEL - 1)
    for command in (invitation(), c.TakeInvitation(hash_of(1), 0), c.NoteCertificate(nid(1), hash_of(1))):
        assert table.refusals(command) == [Refusal.FEATURE_LEVEL]

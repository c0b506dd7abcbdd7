"""Access tokens in the cluster map: put, revoked, checked, bounded, and at which feature level."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
import pytest

from tests.unit.tq_node.cluster.tables import Table, nid, replace
from tests.upgrade.versions import every_recorded
from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster import map as table_of
from tq_node.cluster.map import TokensChanged, UnreadableMap
from tq_node.cluster.records import ACCESS_LEVEL, ClusterMap
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_map_sound
from tq_node.tokens import Quotas, Role, TokenEntry


def token(name: str = "ops", **fields: Any) -> TokenEntry:
    values: dict[str, Any] = {"hash": hashlib.sha256(name.encode()).digest(), "roles": (Role.VIEW,)}
    return TokenEntry(name, **(values | fields))


def table_with(*names: str) -> Table:
    table = Table(level=ACCESS_LEVEL)
    for name in names:
        assert not table.refusals(c.PutToken(token(name)))
    return table


def names_in(table: Table) -> list[str]:
    return [entry.name for entry in table.map.tokens]


class TestPutAndRevoke:
    def test_tokens_are_kept_in_order_of_names_and_told(self) -> None:
        table = table_with("b", "c")
        applied = table.do(c.PutToken(token("a")))
        assert applied.changes == (TokensChanged("a"),)
        assert names_in(table) == ["a", "b", "c"]
        assert table.map.map_version == table.index

    def test_all_of_an_entry_is_kept(self) -> None:
        entry = token(
            "a",
            roles=(Role.SUBMIT, Role.WORK),
            queues=("x", "y"),
            expires_us=9,
            quotas=Quotas(0.5, 1, 2, 3, 4, 5),
            created_us=7,
            created_by="ops",
        )
        table = table_with()
        assert not table.refusals(c.decode(c.encode(c.PutToken(entry))))
        assert table.map.tokens == (entry,)
        assert table_of.decode(table_of.encode(table.map)).tokens == (entry,)
        assert is_map_sound(table.map)

    def test_a_second_put_of_a_name_takes_the_place_of_the_first(self) -> None:
        """Its caller may never have had the answer, which alone had the token."""
        table = table_with("a", "b")
        again = token("a", hash=b"2" * 32)
        assert not table.refusals(c.PutToken(again))
        assert table.map.tokens == (again, token("b"))

    def test_the_same_put_twice_changes_nothing(self) -> None:
        table = table_with("a")
        version = table.map.map_version
        assert table.do(c.PutToken(token("a"))).changes == ()
        assert table.map.map_version == version

    def test_a_revoked_one_is_gone_and_nothing_else(self) -> None:
        table = table_with("a", "b", "c")
        assert table.do(c.RevokeToken("b")).changes == (TokensChanged("b"),)
        assert names_in(table) == ["a", "c"]
        assert table.refusals(c.RevokeToken("b")) == [Refusal.NOT_NEEDED]

    def test_that_callers_are_checked_outlives_the_last_token(self) -> None:
        table = table_with()
        seen = [table.map.tokens_seen]
        for command in (c.PutToken(token("a")), c.RevokeToken("a")):
            table.do(command)
            seen.append(table.map.tokens_seen)
        assert (table.map.tokens, seen) == ((), [False, True, True])
        assert is_map_sound(table.map)


MANY = tuple(f"q{number}" for number in range(limits.TOKEN_QUEUES_MAX))
BAD: dict[str, dict[str, Any]] = {
    "no name": {"name": ""},
    "a name that begins with a dot": {"name": ".a"},
    "a name that is too long": {"name": "a" * 64},
    "a name with a space": {"name": "a b"},
    "a name with a newline at its end": {"name": "a\n"},
    "a hash that is short": {"hash": b"h" * 31},
    "a hash that is long": {"hash": b"h" * 33},
    "no role": {"roles": ()},
    "a role twice": {"roles": (Role.VIEW, Role.VIEW)},
    "a queue twice": {"queues": ("q", "q")},
    "a queue without a name": {"queues": ("",)},
    "a queue whose name is too long": {"queues": ("q" * (limits.QUEUE_CHARS_MAX + 1),)},
    "too many queues": {"queues": (*MANY, "q")},
    "an end before the beginning of time": {"expires_us": -1},
    "an end that no store can hold": {"expires_us": 2**63},
    "made at no time": {"created_us": -1},
    "made by nobody who can be": {"created_by": "a b"},
    "a quota below nothing": {"quotas": Quotas(open_tasks=-1)},
    "an endless quota": {"quotas": Quotas(requests=math.inf)},
    "a quota that is no number": {"quotas": Quotas(requests=math.nan)},
    "a quota beyond all bounds": {"quotas": Quotas(waits=limits.TOKEN_QUOTA_MAX + 1)},
}
GOOD: dict[str, dict[str, Any]] = {
    "the longest name": {"name": "a" * 63},
    "a name of one digit": {"name": "7"},
    "every role": {"roles": tuple(Role)},
    "no queue at all": {"queues": ()},
    "as many queues as may be": {"queues": MANY},
    "the longest name of a queue": {"queues": ("q" * limits.QUEUE_CHARS_MAX,)},
    "quotas of nothing": {"quotas": Quotas(0, 0, 0, 0, 0, 0)},
    "the greatest quota": {"quotas": Quotas(requests=limits.TOKEN_QUOTA_MAX)},
}


class TestWhatATokenCanBe:
    @pytest.mark.parametrize("what", BAD)
    def test_others_are_refused_and_make_a_map_unsound(self, what: str) -> None:
        table = table_with("z")
        bad = replace(token(), **BAD[what])
        assert table.refusals(c.PutToken(bad)) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, tokens=(bad,)))

    @pytest.mark.parametrize("what", GOOD)
    def test_these_are_kept(self, what: str) -> None:
        table = table_with()
        good = replace(token(), **GOOD[what])
        assert not table.refusals(c.PutToken(good))
        assert is_map_sound(replace(table.map, tokens=(good,)))

    def test_two_names_never_have_one_hash(self) -> None:
        table = table_with("a")
        twin = token("b", hash=token("a").hash)
        assert table.refusals(c.PutToken(twin)) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, tokens=(token("a"), twin)))

    @pytest.mark.parametrize("names", [("b", "a"), ("a", "a")])
    def test_a_map_with_tokens_out_of_order_or_doubled_is_unsound(self, names: tuple[str, str]) -> None:
        first, second = (token(name, hash=bytes((number,)) * 32) for number, name in enumerate(names))
        assert not is_map_sound(replace(table_with("z").map, tokens=(first, second)))

    def test_so_is_one_with_tokens_that_says_that_it_never_had_any(self) -> None:
        table = table_with("a")
        assert is_map_sound(table.map)
        assert not is_map_sound(replace(table.map, tokens_seen=False))


class TestBounds:
    def full(self, count: int, queues: tuple[str, ...] | None = None) -> Table:
        table = table_with("z")
        many = tuple(token(f"n{number:05}", queues=queues) for number in range(count))
        table.map = replace(table.map, tokens=many)
        return table

    def test_there_are_so_many_tokens_and_no_more(self) -> None:
        table = self.full(limits.TOKENS_MAX - 1)
        assert not table.refusals(c.PutToken(token("last")))
        assert table.refusals(c.PutToken(token("more"))) == [Refusal.TOO_MANY]
        assert not table.refusals(c.PutToken(token("last", roles=(Role.READ,)))), "in place of another"
        assert is_map_sound(table.map)
        assert not is_map_sound(replace(table.map, tokens=(*table.map.tokens, token("more"))))

    def test_and_so_many_names_of_queues_in_all(self) -> None:
        table = self.full(limits.TOKENS_QUEUES_MAX // len(MANY) - 1, MANY)
        assert not table.refusals(c.PutToken(token("last", queues=MANY)))
        assert table.refusals(c.PutToken(token("more", queues=("q",)))) == [Refusal.TOO_MANY]
        assert not table.refusals(c.PutToken(token("more")))

    def test_the_longest_put_fits_into_an_entry_of_the_log_and_a_call_to_the_leader(self) -> None:
        from tq_node.raft.settings import RaftSettings
        from tq_node.wire import bounds

        queues = tuple("\U0001f600" * (limits.QUEUE_CHARS_MAX - 3) + f"{n:03}" for n in range(limits.TOKEN_QUEUES_MAX))
        longest = token(
            "a" * 63, roles=tuple(Role), queues=queues, expires_us=2**62, created_us=2**62, created_by="b" * 63
        )
        size = len(c.encode(c.PutToken(longest)))
        assert size < RaftSettings().entry_bytes_max < bounds.ASK_BYTES_MAX

    def test_the_largest_table_fits_into_a_snapshot_by_far(self) -> None:
        from tq_node.raft.settings import RaftSettings

        queues = tuple("\U0001f600" * (limits.QUEUE_CHARS_MAX - 3) + f"{n:03}" for n in range(limits.TOKEN_QUEUES_MAX))
        table = self.full(limits.TOKENS_QUEUES_MAX // len(queues), queues)
        more = tuple(token(f"z{n:05}", created_by="b" * 63) for n in range(limits.TOKENS_MAX - len(table.map.tokens)))
        table.map = replace(table.map, tokens=(*table.map.tokens, *more))
        assert is_map_sound(table.map)
        assert len(table_of.encode(table.map)) * 10 < RaftSettings().snapshot_bytes_max


TOKENS = ClusterMap.__struct_fields__.index("tokens")


class TestFeatureLevel:
    def test_f44_below_it_no_token_is_kept_and_the_command_is_refused(self) -> None:
        table = Table(level=ACCESS_LEVEL - 1)
        assert table.refusals(c.PutToken(token())) == [Refusal.FEATURE_LEVEL]
        assert table.refusals(c.RevokeToken("ops")) == [Refusal.FEATURE_LEVEL]
        table.register(1, 2, feature_level_max=ACCESS_LEVEL)
        assert not table.refusals(c.RaiseFeatureLevel(ACCESS_LEVEL))
        assert not table.map.tokens_seen
        assert not table.refusals(c.PutToken(token()))

    def test_f44_who_knows_no_tokens_can_not_join_a_cluster_of_that_level(self) -> None:
        table = table_with("a")
        table.register(2, feature_level_max=ACCESS_LEVEL - 1)
        assert nid(2) not in table.map.nodes

    @pytest.mark.parametrize("level", [1, 2])
    def test_f44_below_it_the_table_is_as_that_release_wrote_it(self, level: int) -> None:
        table = Table(level=level)
        data = table_of.encode(table.map)
        (old, *_) = (one for one in every_recorded() if one.description["features"] == [1, level])
        old.frozen().decode("table", data)
        assert table_of.decode(data) == table.map

    def test_f44_a_table_below_it_that_has_tokens_is_not_read(self) -> None:
        data = table_of.encode(Table(level=ACCESS_LEVEL - 1).map)
        fields = msgspec.msgpack.decode(data[1:])
        entry = msgspec.msgpack.decode(msgspec.msgpack.encode(token()))
        for more, named in (([[entry], False], "tokens"), ([[], True], "tokens_seen")):
            with pytest.raises(UnreadableMap, match=named):
                table_of.decode(data[:1] + msgspec.msgpack.encode([*fields, *more]))

    def test_f44_a_role_or_a_field_of_a_later_release_stops_the_node(self) -> None:
        """To skip it would be divergence: a digest is of all bytes. A release that has one raises the level first."""
        table = table_with("a")
        fields = msgspec.msgpack.decode(table_of.encode(table.map)[1:])
        (entry,) = fields[TOKENS]
        for changed in ([*entry[:2], ["owner"], *entry[3:]], [*entry, 1], [*entry[:5], [*entry[5], 1], *entry[6:]]):
            with pytest.raises(UnreadableMap):
                table_of.decode(b"\x01" + msgspec.msgpack.encode([*fields[:TOKENS], [changed], *fields[TOKENS + 1 :]]))
            with pytest.raises(c.UnreadableCommand):
                c.decode(b"\x01" + msgspec.msgpack.encode([37, changed]))

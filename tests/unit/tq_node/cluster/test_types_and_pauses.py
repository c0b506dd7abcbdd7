"""Settings of types and pauses in the cluster map: kept, bounded, over in time, and at which feature level."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.tq_node.cluster.tables import Table, replace
from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster import map as table_of
from tq_node.cluster.map import QueueChanged, TypeChanged, UnreadableMap
from tq_node.cluster.pauses import paused
from tq_node.cluster.records import WORKERS_LEVEL
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_map_sound
from tq_node.types import Backoff, HandledType, PauseEntry

EMAIL = HandledType("email", "mail", 7, 500, Backoff("fixed", 1, 2, False))


@pytest.fixture
def table() -> Table:
    return Table(level=WORKERS_LEVEL)


def pause(table: Table, target: str, name: str, **fields: Any) -> Any:
    return table.do(c.Pause(PauseEntry(target, name, **fields)))


class TestTypes:
    def test_what_operators_put_is_kept_in_order_and_told(self, table: Table) -> None:
        assert table.do(c.PutType(EMAIL)).changes == (TypeChanged("email"),)
        assert table.do(c.PutType(HandledType("audio"))).changes == (TypeChanged("audio"),)
        assert table.do(c.PutType(EMAIL)).changes == ()
        assert table.map.type_settings == (HandledType("audio"), EMAIL)
        assert is_map_sound(table.map)
        assert table_of.decode(table_of.encode(table.map)) == table.map

    def test_a_put_takes_the_place_of_all_that_was_put_before(self, table: Table) -> None:
        table.do(c.PutType(EMAIL))
        table.do(c.PutType(HandledType("email", max_attempts=2)))
        assert table.map.type_settings == (HandledType("email", max_attempts=2),)

    def test_what_workers_announce_is_kept_apart(self, table: Table) -> None:
        table.do(c.PutType(EMAIL))
        applied = table.do(c.AnnounceTypes((HandledType("image", "big"), HandledType("email", "other"))))
        assert applied.changes == (TypeChanged("email"), TypeChanged("image"))
        assert table.do(c.AnnounceTypes((HandledType("image", "big"),))).changes == ()
        assert table.map.type_settings == (EMAIL,)
        assert table.map.announced_types == (HandledType("email", "other"), HandledType("image", "big"))

    def test_deleted_is_what_was_put_and_what_was_announced(self, table: Table) -> None:
        table.do(c.PutType(EMAIL))
        table.do(c.AnnounceTypes((HandledType("email"), HandledType("image"))))
        assert table.do(c.DeleteType("email")).changes == (TypeChanged("email"),)
        assert (table.map.type_settings, table.map.announced_types) == ((), (HandledType("image"),))
        assert table.refusals(c.DeleteType("email")) == [Refusal.NOT_NEEDED]

    @pytest.mark.parametrize(
        "entry",
        [
            HandledType(""),
            HandledType("a" * (limits.TASK_TYPE_CHARS_MAX + 1)),
            HandledType("a", queue=""),
            HandledType("a", max_attempts=0),
            HandledType("a", timeout_ms=-1),
            HandledType("a", backoff=Backoff(base_ms=-1)),
            HandledType("a", backoff=Backoff(kind="x" * 65)),
        ],
    )
    def test_what_no_type_can_be_is_refused(self, table: Table, entry: HandledType) -> None:
        assert table.refusals(c.PutType(entry)) == [Refusal.BAD_SETTINGS]
        assert table.refusals(c.AnnounceTypes((EMAIL, entry))) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, type_settings=(entry,)))
        assert not is_map_sound(replace(table.map, announced_types=(entry,)))

    def test_they_are_few(self, table: Table) -> None:
        many = tuple(HandledType(f"t{number:04}") for number in range(limits.TYPE_SETTINGS_MAX))
        assert not table.refusals(c.AnnounceTypes(many))
        assert table.refusals(c.AnnounceTypes((EMAIL,))) == [Refusal.TOO_MANY]
        assert not table.refusals(c.PutType(EMAIL)), "workers take nothing away from operators"
        table.map = replace(table.map, type_settings=many)
        assert table.refusals(c.PutType(EMAIL)) == [Refusal.TOO_MANY]
        assert not table.refusals(c.PutType(HandledType("t0000", "q"))), "in place of another"
        assert not is_map_sound(replace(table.map, type_settings=(*many, HandledType("u"))))
        assert not is_map_sound(replace(table.map, type_settings=many[::-1]))


class TestPauses:
    def test_a_queue_and_a_type_with_all_that_is_known(self, table: Table) -> None:
        assert pause(table, "type", "email", reason="it bounces", since_us=5, by="ann").changes == (
            TypeChanged("email"),
        )
        assert pause(table, "queue", "mail", since_us=6).changes == (QueueChanged("mail", is_paused=True),)
        table.do(c.PauseQueue("early"))
        assert table.map.paused_queues == ("early", "mail"), "what code of level 3 acts upon"
        now = paused(table.map, 10)
        assert now.types == {"email": PauseEntry("type", "email", "it bounces", 5, by="ann")}
        assert now.queues == {"early": PauseEntry("queue", "early"), "mail": PauseEntry("queue", "mail", since_us=6)}
        assert is_map_sound(table.map)
        assert table_of.decode(table_of.encode(table.map)) == table.map

    def test_resumed_by_the_old_order_and_the_new_one(self, table: Table) -> None:
        for name in "abc":
            pause(table, "queue", name, reason="why")
        pause(table, "type", "a")
        assert table.do(c.ResumeQueue("a")).changes == (QueueChanged("a", is_paused=False),)
        assert table.do(c.Resume("queue", "b", 9)).changes == (QueueChanged("b", is_paused=False),)
        assert table.do(c.Resume("type", "a", 9)).changes == (TypeChanged("a"),)
        assert table.do(c.Resume("type", "a", 9)).changes == ()
        assert (table.map.paused_queues, [one.name for one in table.map.pauses]) == (("c",), ["c"])

    def test_one_with_an_end_is_over_by_itself_and_forgotten_later(self, table: Table) -> None:
        pause(table, "queue", "mail", until_us=100)
        pause(table, "type", "email", until_us=50)
        assert (list(paused(table.map, 49).types), list(paused(table.map, 99).queues)) == (["email"], ["mail"])
        assert (paused(table.map, 49).next_end_us, paused(table.map, 50).next_end_us) == (50, 100)
        assert (paused(table.map, 50).types, paused(table.map, 100).queues) == ({}, {})
        assert pause(table, "type", "other", since_us=70).changes == (TypeChanged("email"), TypeChanged("other"))
        assert table.do(c.Resume("type", "x", 100)).changes == (QueueChanged("mail", is_paused=False),)
        assert [one.name for one in table.map.pauses] == ["other"]
        assert table.map.paused_queues == ()

    def test_again_is_another_reason(self, table: Table) -> None:
        pause(table, "queue", "mail", reason="first")
        assert pause(table, "queue", "mail", reason="second").changes == ()
        assert [one.reason for one in table.map.pauses] == ["second"]

    @pytest.mark.parametrize(
        "entry",
        [
            PauseEntry("worker", "w"),
            PauseEntry("queue", ""),
            PauseEntry("type", "a" * (limits.TASK_TYPE_CHARS_MAX + 1)),
            PauseEntry("type", "a", "r" * (limits.PAUSE_REASON_CHARS_MAX + 1)),
            PauseEntry("type", "a", since_us=-1),
            PauseEntry("type", "a", by="no name"),
        ],
    )
    def test_what_no_pause_can_be_is_refused(self, table: Table, entry: PauseEntry) -> None:
        assert table.refusals(c.Pause(entry)) == [Refusal.BAD_SETTINGS]
        assert not is_map_sound(replace(table.map, pauses=(entry,)))

    def test_they_are_few(self, table: Table) -> None:
        many = tuple(PauseEntry("type", f"t{number:04}") for number in range(limits.PAUSED_TYPES_MAX))
        table.map = replace(table.map, pauses=many)
        assert table.refusals(c.Pause(PauseEntry("type", "u"))) == [Refusal.TOO_MANY]
        queues = tuple(f"q{number:04}" for number in range(limits.QUEUES_MAX))
        table.map = replace(table.map, pauses=(), paused_queues=queues)
        assert table.refusals(c.Pause(PauseEntry("queue", "r"))) == [Refusal.TOO_MANY]
        assert not table.refusals(c.Pause(PauseEntry("queue", "q0000", "why")))

    def test_what_is_known_of_a_queue_that_is_not_paused_is_unsound(self, table: Table) -> None:
        assert not is_map_sound(replace(table.map, pauses=(PauseEntry("queue", "mail"),)))


@pytest.mark.parametrize(
    "command",
    [
        c.PutType(EMAIL),
        c.DeleteType("email"),
        c.AnnounceTypes((EMAIL,)),
        c.Pause(PauseEntry("type", "a")),
        c.Resume("type", "a", 1),
    ],
)
def test_f44_not_below_their_level(command: Any) -> None:
    table = Table(level=WORKERS_LEVEL - 1)
    assert table.refusals(command) == [Refusal.FEATURE_LEVEL]
    written = msgspec.msgpack.decode(table_of.encode(table.map)[1:])
    assert len(written) == len(type(table.map).__struct_fields__) - 3


@pytest.mark.parametrize("field", ["type_settings", "announced_types", "pauses"])
def test_f44_a_map_of_an_earlier_level_can_not_have_them(field: str) -> None:
    table = Table(level=WORKERS_LEVEL)
    table.do(c.PutType(EMAIL))
    table.do(c.AnnounceTypes((EMAIL,)))
    pause(table, "type", "email")
    early = replace(Table(level=WORKERS_LEVEL - 1).map, **{field: getattr(table.map, field)})
    with pytest.raises(UnreadableMap):
        table_of.decode(bytes((1,)) + msgspec.msgpack.encode(early))

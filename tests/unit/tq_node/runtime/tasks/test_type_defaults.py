"""Which defaults a type's tasks get: an operator's, then this node's handlers', other nodes', remote workers'."""

from __future__ import annotations

from tq_node.facade import TypeDefaults
from tq_node.runtime.tasks.type_defaults import TypeDefaultsTable
from tq_node.types import Backoff, HandledType

BACKOFF = Backoff("constant", 1, 2, False)


def table(
    put: tuple[HandledType, ...] = (),
    own: tuple[HandledType, ...] = (),
    others: tuple[tuple[HandledType, ...], ...] = (),
    workers: tuple[HandledType, ...] = (),
) -> TypeDefaultsTable:
    made = TypeDefaultsTable()
    made.follow(put, own, others, workers)
    return made


def test_nobody_says_anything_of_a_type() -> None:
    assert table().of("a") == TypeDefaults()


def test_who_declares_counts_as_a_whole_the_nearest_first() -> None:
    own, other, third = HandledType("a", "q", 1), HandledType("a", None, 2, 20), HandledType("a", None, 3, 30, BACKOFF)
    assert table(own=(own,), others=((other,),), workers=(third,)).of("a") == TypeDefaults("q", 1)
    assert table(others=((other,), (third,)), workers=(third,)).of("a") == TypeDefaults(None, 2, 20)
    assert table(workers=(third,)).of("a") == TypeDefaults(None, 3, 30, BACKOFF)


def test_a_handler_without_defaults_says_nothing_of_its_type() -> None:
    assert table(own=(HandledType("a"),), others=((HandledType("a", "q"),),)).of("a") == TypeDefaults("q")


def test_field_by_field_an_operator_s_go_before_all() -> None:
    declared = HandledType("a", "q", 1, 10, BACKOFF)
    made = table(put=(HandledType("a", max_attempts=9),), own=(declared,))
    assert made.of("a") == TypeDefaults("q", 9, 10, BACKOFF)
    assert table(put=(HandledType("a", "p"),)).of("a") == TypeDefaults("p")


def test_a_handler_for_any_type_counts_where_nobody_has_one_for_the_type() -> None:
    wild = HandledType("*", "any", 7)
    made = table(put=(HandledType("b", timeout_ms=5),), own=(wild,), others=((HandledType("a"),),))
    assert made.of("x") == TypeDefaults("any", 7)
    assert made.of("a") == TypeDefaults()
    assert made.of("b") == TypeDefaults("any", 7, 5)


def test_queues_of_operators_and_of_this_node_are_always_open() -> None:
    made = table(
        (HandledType("a", "p"),), (HandledType("b", "q"),), ((HandledType("c", "r"),),), (HandledType("d", "s"),)
    )
    assert made.queues == {"p", "q"}


def test_it_follows_what_changes() -> None:
    made = table(own=(HandledType("a", "q"),))
    made.follow((), (), (), ())
    assert made.of("a") == TypeDefaults()

"""The picture of the rooms is the one that the imports make."""

from __future__ import annotations

from tests import rooms
from tests.support.harness import PROJECT


def test_the_kept_picture_is_what_the_command_prints() -> None:
    kept = (PROJECT / "docs/explanation/rooms.md").read_text("utf-8")
    assert kept == rooms.page(), "python -m tests.rooms > docs/explanation/rooms.md"


def test_an_arrow_that_a_longer_way_replaces_is_left_out() -> None:
    assert rooms.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_rooms_that_import_each_other_keep_their_arrows() -> None:
    circle = {"a": {"b"}, "b": {"a", "c"}, "c": set()}
    assert rooms.reduced(circle) == circle


def test_packages_of_the_runtime_are_rooms_and_shared_values_are_none() -> None:
    assert rooms.room_of("tq_node.runtime.tasks.submit") == "runtime.tasks"
    assert rooms.room_of("tq_node.runtime.clock") == "runtime"
    assert rooms.room_of("tq_node.limits") is None
    assert rooms.room_of("msgspec") is None

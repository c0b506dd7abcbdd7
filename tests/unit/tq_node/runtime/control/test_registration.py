"""When a member's word that this node is a copy ends it, and when it takes more than one (F14)."""

from __future__ import annotations

from typing import Any

import pytest

from tq_node.cluster.commands import Registration
from tq_node.cluster.refusals import Refusal
from tq_node.runtime.control.registration import Registrar
from tq_node.types import NodeId, NodeName


class Entry:
    def __init__(self, number: int) -> None:
        self.node_id = NodeId(str(number))


class Node:
    """A registrant that knows so many members, itself (1) among them."""

    def __init__(self, members: int, *, is_registered: bool) -> None:
        self.registration = Registration(NodeId("1"), NodeName("n"), "", "", 1, "nonce", 1, 1)
        self.is_registered = is_registered
        self.map: Any = self
        self._members = [Entry(number + 1) for number in range(members)]

    def members(self) -> list[Entry]:
        return self._members


def refusals_of(members: int, said_by: list[int], *, is_registered: bool, let_in_by: int = 0) -> list[Refusal]:
    found: list[Refusal] = []
    node: Any = Node(members, is_registered=is_registered)
    nobody: Any = None
    registering = Registrar(node, nobody, nobody, found.append)
    for number in said_by:
        registering.called_stale_by(NodeId(str(number)))
        registering.let_in_by(NodeId(str(let_in_by)))
    return found


def test_one_word_is_enough_for_a_run_that_the_table_does_not_have() -> None:
    assert refusals_of(3, [2], is_registered=False) == [Refusal.STORE_CLONED]


@pytest.mark.parametrize(
    ("members", "said_by", "is_over"),
    [(2, [2], True), (3, [2], False), (3, [2, 2, 2], False), (3, [2, 3], True), (5, [2, 3], False), (5, [2, 3, 4], True),
     (3, [2, 9], False)],
)  # fmt: skip
def test_a_registered_run_ends_when_most_others_say_so(members: int, said_by: list[int], is_over: bool) -> None:
    assert refusals_of(members, said_by, is_registered=True) == ([Refusal.STORE_CLONED] if is_over else [])


def test_who_lets_it_in_again_has_taken_it_back() -> None:
    assert refusals_of(3, [2, 3], is_registered=True, let_in_by=2) == []


def test_it_is_reported_once() -> None:
    assert refusals_of(3, [2, 3, 2], is_registered=False) == [Refusal.STORE_CLONED]

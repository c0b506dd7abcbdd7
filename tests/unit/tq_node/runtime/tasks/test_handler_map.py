"""What a node knows of the handlers in its cluster, and what it gives up."""

from __future__ import annotations

from tests.support.node_world import NodeWorld
from tests.unit.tq_node.cluster.tables import Table, nid
from tests.unit.tq_node.runtime.routing.test_work_offers import Helped
from tq_node.facade import Submission
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.types import Announced, HandledType, HandlerKind, NodeId, State

ME, OTHER = nid(1), nid(2)


def says(*types: str) -> Announced:
    return Announced(HandlerKind.OWN, tuple(map(HandledType, types)))


class Known:
    def __init__(self) -> None:
        self.world = NodeWorld(0)
        self.table = Table(2)
        self.told: dict[NodeId, Announced] = {}
        self.handling = HandlerMap(ME, self.world.queue._clock)

    def follow(self, *own: str) -> bool:
        return self.handling.follow(self.table.map, self.told, own)

    @property
    def now_us(self) -> int:
        return self.world.queue._clock.wall_us()


def test_a_node_that_has_not_said_what_it_has_may_have_it() -> None:
    known = Known()
    assert known.follow("a")
    assert known.handling.types_of(OTHER) is None
    assert known.handling.without_handler_us("b") is None
    known.told[OTHER] = says("b")
    assert known.follow("a")
    assert not known.follow("a")
    assert known.handling.takers.named == {"a", "b"}
    assert known.handling.without_handler_us("b") is None
    assert known.handling.without_handler_us("c") == known.now_us, "until now somebody might have had it"


def test_whoever_takes_any_takes_all() -> None:
    known = Known()
    known.told[OTHER] = says("b", "*")
    known.follow("a")
    assert known.handling.types_of(OTHER) is None
    assert known.handling.has_taker("whatever")


def test_a_node_that_is_down_takes_nothing_and_since_when_is_kept() -> None:
    known = Known()
    known.told[OTHER] = says("b")
    known.follow("a")
    known.world.turn(5.0)
    known.table.down(2)
    known.follow("a")
    gone_us = known.now_us
    known.world.turn(7.0)
    assert known.handling.without_handler_us("b") == gone_us
    assert known.handling.waited_us("b", 0, known.now_us) == 7_000_000
    assert known.handling.waited_us("a", 0, known.now_us) == 0
    known.table.register(2, 2)
    known.follow("a")
    assert known.handling.without_handler_us("b") is None


def test_how_long_it_has_waited_counts_from_when_this_node_began_to_look() -> None:
    """After a restart nobody is there yet: what others have they first have to say."""
    known = Known()
    known.told[OTHER] = says("b")
    known.world.turn(100.0)
    known.follow("a")
    assert known.handling.waited_us("c", 0, known.now_us) == 0
    known.world.turn(3.0)
    assert known.handling.waited_us("c", 0, known.now_us) == 3_000_000
    assert known.handling.waited_us("c", known.now_us - 1_000_000, known.now_us) == 1_000_000


def test_what_waits_too_long_for_a_handler_fails_and_nothing_else() -> None:
    helped, table = Helped(), Table(1)
    queue = helped.world.queue
    handling = HandlerMap(ME, queue._clock)
    handling.follow(table.map, {}, ("email",))
    queue.follow_handlers(("email",), {"email"})
    queue.set_paused(["still"])
    helped.submit("old", task_type="nobody's")
    helped.submit("paused", task_type="nobody's", queue="still")
    helped.submit("email")
    helped.world.turn(60.0)
    helped.submit("new", task_type="nobody's")
    queue.give_up_unhandled(handling, 30_000_000)
    helped.world.until(lambda: helped.row("old").state is State.FAILED, "it is given up")
    error = helped.row("old").error
    assert error is not None
    assert (error.type, error.message) == ("no_handler", 'no node has had a handler for "nobody\'s" for 30 s')
    assert [helped.row(name).state for name in ("paused", "email", "new")] == [State.PENDING] * 3
    helped.world.turn(60.0)
    queue.give_up_unhandled(handling, 30_000_000)
    helped.world.until(lambda: helped.row("new").state is State.FAILED, "so is that, which was put back")
    assert (
        helped.result(
            queue.submitter.submit(Submission(type="nobody's", payload=b"1", id="old", content_hash=b"a"))
        ).state
        is State.FAILED
    )

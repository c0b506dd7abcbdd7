from __future__ import annotations

import cProfile
import pstats

from hypothesis import given
from hypothesis import strategies as st

from tq_node import limits
from tq_node.partition.ready_queue import DueSet, ReadySet, rank_us

STEP_US = limits.AGE_STEP_MS * 1000
task = st.tuples(st.integers(0, 10**15), st.integers(0, 9), st.sampled_from(["default", "mail", "größe"]))


def drained(ready: ReadySet) -> list[str]:
    order = []
    while (one := ready.pop()) is not None:
        order.append(one[0])
    return order


def test_of_two_due_tasks_the_higher_priority_starts_first() -> None:
    ready = ReadySet()
    ready.push("low", 0, "default", 1, 1_000)
    ready.push("high", 1, "default", 9, 1_000 + STEP_US)
    assert drained(ready) == ["high", "low"]


def test_a_starving_low_one_ages_past_the_bound() -> None:
    ready = ReadySet()
    ready.push("high", 0, "default", 9, 10 * STEP_US)
    ready.push("low", 0, "default", 0, STEP_US - 1)
    assert drained(ready) == ["low", "high"], "it has been due for more than nine steps longer"


@given(st.lists(task, max_size=40))
def test_order_is_that_of_the_rank(tasks: list[tuple[int, int, str]]) -> None:
    pushed, extended = ReadySet(), ReadySet()
    for number, (run_at_us, priority, queue) in enumerate(tasks):
        pushed.push(f"t{number}", number % 7, queue, priority, run_at_us)
    extended.extend([(f"t{n}", n % 7, queue, priority, at, "") for n, (at, priority, queue) in enumerate(tasks)])
    extended.arrange()
    order = drained(pushed)
    ranks = [rank_us(tasks[int(t[1:])][0], tasks[int(t[1:])][1]) for t in order]
    assert ranks == sorted(ranks)
    assert drained(extended) == order
    assert len(order) == len(tasks)


def test_pop_tells_the_partition() -> None:
    ready = ReadySet()
    ready.push("t", 63, "q", 5, 1)
    assert ready.pop() == ("t", 63)
    assert ready.pop() is None


def test_tasks_of_a_paused_queue_wait_and_come_back_in_order() -> None:
    ready = ReadySet()
    ready.pause("mail")
    for name, queue in (("m1", "mail"), ("d1", "default"), ("m2", "mail")):
        ready.push(name, 0, queue, 5, 1)
    assert drained(ready) == ["d1"]
    ready.resume("mail")
    assert drained(ready) == ["m1", "m2"]
    ready.resume("never paused")
    assert not ready.has_any


def test_a_paused_queue_is_not_walked() -> None:
    ready = ReadySet()
    ready.extend([(f"m{n}", 0, "mail", 5, n, "") for n in range(100_000)])
    ready.push("d", 0, "default", 5, 10**9)
    ready.arrange()
    ready.pause("mail")
    assert ready.is_paused("mail")
    assert ready.pop() == ("d", 0)
    assert ready.pop() is None
    assert len(ready) == 100_000


def test_a_partition_that_is_led_no_more_is_forgotten() -> None:
    ready, due = ReadySet(), DueSet()
    ready.pause("mail")
    for partition in (1, 2):
        ready.push(f"m{partition}", partition, "mail", 5, 0)
        ready.push(f"d{partition}", partition, "default", 5, 1)
        due.push(f"s{partition}", partition, 1)
    assert ready.pop() == ("d1", 1), "m1 and m2 wait"
    ready.drop_partition(2)
    due.drop_partition(2)
    ready.resume("mail")
    assert drained(ready) == ["m1"]
    assert due.pop_due(9, 9) == [("s1", 1)]


def test_partitions_come_and_go_without_a_look_at_the_tasks_of_others() -> None:
    ready, due = ReadySet(), DueSet()
    ready.extend([(f"t{n}", n % 64, "default", 5, n, "") for n in range(64_000)])
    due.extend([(f"t{n}", n % 64, n) for n in range(64_000)])
    ready.arrange()
    due.arrange()
    one_ready, one_due = ReadySet(), DueSet()
    one_ready.push("new", 5, "default", 5, 0)
    one_due.push("new", 5, 0)
    profile = cProfile.Profile()
    profile.enable()
    for partition in range(5, 37):
        ready.drop_partition(partition)
        due.drop_partition(partition)
    ready.absorb(one_ready)
    due.absorb(one_due)
    profile.disable()
    assert pstats.Stats(profile).total_calls < 1_000  # type: ignore[attr-defined]  # public, and not in typeshed
    assert len(ready) == len(due) == 32_001
    assert [ready.pop() for _ in range(3)] == [("t0", 0), ("new", 5), ("t1", 1)]
    assert due.pop_due(5, 9) == [("t0", 0), ("new", 5), ("t1", 1), ("t2", 2), ("t3", 3), ("t4", 4)]


def test_a_partition_that_comes_back_has_what_it_brings_and_nothing_of_before() -> None:
    ready, due = ReadySet(), DueSet()
    ready.push("old", 1, "default", 5, 0)
    due.push("old", 1, 0)
    ready.drop_partition(1)
    due.drop_partition(1)
    assert due.next_us() is None
    again, later = ReadySet(), DueSet()
    again.push("kept", 1, "default", 5, 3)
    later.push("kept", 1, 3)
    ready.absorb(again)
    due.absorb(later)
    ready.push("newest", 1, "default", 5, 9)
    due.push("newest", 1, 9)
    assert drained(ready) == ["kept", "newest"]
    assert [task_id for task_id, _ in due.pop_due(9, 9)] == ["kept", "newest"]
    assert (len(ready), len(due), ready.has_any) == (0, 0, False)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(0, 100), st.integers(1, 40))
def test_due_tasks_come_in_order_and_not_early(times: list[int], now: int, limit: int) -> None:
    due, many = DueSet(), DueSet()
    for number, at in enumerate(times):
        due.push(f"t{number}", 3, at)
    many.extend([(f"t{number}", 3, at) for number, at in enumerate(times)])
    many.arrange()
    assert due.next_us() == (min(times) if times else None)
    popped = due.pop_due(now, limit)
    assert len(popped) == min(limit, sum(at <= now for at in times))
    came = [times[int(task_id[1:])] for task_id, _ in popped]
    assert came == sorted(came)
    assert all(when <= now for when in came)
    assert many.pop_due(now, limit) == popped
    assert len(due) == len(times) - len(popped)


class TestLanes:
    """What a worker has no handler for it never comes to, and it costs nothing."""

    def test_only_what_the_worker_takes(self) -> None:
        ready = ReadySet({"a", "b"}, {"a", "b", "c"})
        for n, task_type in enumerate(["c", "x", "b", "a", "c", "b"]):
            ready.push(f"{task_type}{n}", n % 3, "default", 5, n, task_type)
        assert [ready.pop_for({"c"}), ready.pop_for({"nothing"})] == [("c0", 0), None]
        assert drained(ready) == ["b2", "a3", "b5"]
        assert not ready.has_any
        assert ready.pop_for(None) == ("x1", 1)
        assert ready.pop_for(None) == ("c4", 1)
        assert len(ready) == 0

    def test_a_million_others_are_not_walked(self) -> None:
        ready = ReadySet({"a"}, {"a", "c"})
        ready.extend([(f"c{n}", n % 8, "default", 5, n, "c" if n % 2 else "x") for n in range(100_000)])
        ready.push("a", 0, "default", 5, 10**9, "a")
        ready.arrange()
        profile = cProfile.Profile()
        profile.enable()
        popped = [ready.pop() for _ in range(100)]
        profile.disable()
        assert popped == [("a", 0)] + [None] * 99
        assert pstats.Stats(profile).total_calls < 1_000  # type: ignore[attr-defined]
        assert ready.waiting_for({"c"}) == (50_000, 0)
        assert ready.waiting_for(None) == (100_000, 0)

    def test_one_that_becomes_known_says_that_it_lies_in_the_wrong_lane(self) -> None:
        ready = ReadySet(frozenset(), frozenset())
        ready.set_known({"a"})
        assert not ready.is_misplaced, "there was nothing"
        ready.push("x", 0, "default", 5, 1, "x")
        ready.set_known(set())
        assert not ready.is_misplaced
        ready.set_known({"x"})
        assert [ready.is_misplaced] == [True]
        again = ready.like()
        again.push("x", 0, "default", 5, 1, "x")
        assert (again.is_misplaced, again.pop_for({"x"})) == (False, ("x", 0))

    def test_what_was_read_before_it_became_known_too(self) -> None:
        ready = ReadySet({"x"}, set())
        found = ready.like()
        found.push("x", 0, "default", 5, 1, "x")
        ready.set_known({"x"})
        assert not found.has_lanes_of(ready)
        ready.absorb(found)
        assert ready.is_misplaced

    def test_a_worker_that_takes_something_else_now(self) -> None:
        ready = ReadySet(None, {"a", "b"})
        ready.push("a", 0, "default", 5, 1, "a")
        ready.push("b", 0, "default", 5, 2, "b")
        ready.push("x", 0, "default", 5, 3, "x")
        ready.set_own(frozenset())
        assert ready.pop() is None
        ready.set_own({"b"})
        assert drained(ready) == ["b"]
        ready.set_own(None)
        assert drained(ready) == ["a", "x"]

    def test_paused_queues_rest_for_everybody(self) -> None:
        ready = ReadySet({"a"}, {"a", "b"})
        ready.push("a1", 0, "mail", 5, 1, "a")
        ready.push("b1", 0, "mail", 5, 1, "b")
        ready.pause("mail")
        assert (ready.pop(), ready.pop_for({"b"}), ready.waiting_for(None)) == (None, None, (0, 0))
        ready.resume("mail")
        assert (ready.pop_for({"b"}), ready.pop()) == (("b1", 0), ("a1", 0))

    @given(
        st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abcx"), st.integers(0, 3)), max_size=40),
        st.lists(st.sampled_from(["own", "a", "bc", "any"]), max_size=60),
    )
    def test_workers_in_turn_each_get_the_first_that_they_may(
        self, tasks: list[tuple[int, str, int]], asks: list[str]
    ) -> None:
        takes = {"own": {"a", "b"}, "a": {"a"}, "bc": {"b", "c"}, "any": None}
        ready = ReadySet(takes["own"], {"a", "b", "c"})
        left: dict[str, tuple[int, str]] = {}
        waiting = list(enumerate(tasks))
        for turn, ask in enumerate(asks):
            for n, (at, task_type, partition) in waiting[turn : turn + 1]:
                ready.push(f"t{n}", partition, "default", 5, at, task_type)
                left[f"t{n}"] = at, task_type
            types = takes[ask]
            popped = ready.pop() if ask == "own" else ready.pop_for(types)
            fitting = {name: at for name, (at, kind) in left.items() if types is None or kind in types}
            if popped is None:
                assert not fitting
            else:
                assert fitting[popped[0]] == min(fitting.values())
                del left[popped[0]]
        assert len(ready) == len(left)


class TestPausedTypes:
    def ready(self) -> ReadySet:
        made = ReadySet(None, known={"a", "b"})
        for number, kind in enumerate("abc"):
            made.push(f"{kind}-{number}", number, "q", 5, number, kind)
        return made

    def test_nothing_of_them_is_found_and_the_others_pass_by(self) -> None:
        made = self.ready()
        made.pause_types({"a"})
        assert made.pop() == ("b-1", 1)
        made.push("a-9", 3, "q", 9, 0, "a")
        assert (made.pop(), made.pop(), made.kinds()) == (("c-2", 2), None, set())
        assert (made.is_paused("q", "a"), made.is_paused("q", "b"), made.is_paused("q")) == (True, False, False)
        assert made.waiting_for(None) == (0, 0)
        made.pause_types(())
        assert [made.pop(), made.pop()] == [("a-9", 3), ("a-0", 0)]

    def test_sizes_of_lanes_and_of_some_partitions(self) -> None:
        made = self.ready()
        made.push("a-9", 3, "q", 5, 9, "a")
        assert {lane: (size, parts) for lane, size, parts in made.sizes({3, 2})} == {
            ("q", "a"): (2, {3: 1}),
            ("q", "b"): (1, {}),
            ("q", ""): (1, {2: 1}),
        }

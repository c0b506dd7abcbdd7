"""The part of a list that is held, against a list of the test's own."""

from __future__ import annotations

import pytest

from tq_tui.client.models import Event, Task, TaskPage
from tq_tui.state.task_window import FIRST_PAGE_ROWS_MAX, PAGES_MAX, TaskWindow, after

PAGE = 10


def server(count: int) -> list[Task]:
    return [Task(id=f"t{number:06}", type="x", status="pending", version=1) for number in range(count)]


def page(tasks: list[Task], start: str | None, limit: int = PAGE) -> TaskPage:
    """Cursors are the ids that a page comes behind."""
    first = 0 if start is None else next(n for n, task in enumerate(tasks) if task.id == start) + 1
    rows = tasks[first : first + limit]
    return TaskPage(tuple(rows), rows[-1].id if first + limit < len(tasks) else None)


def ids(window: TaskWindow) -> list[str]:
    return [task.id for task in window.rows]


def test_to_the_end_and_back_in_flat_memory() -> None:
    tasks = server(1_000)
    window = TaskWindow()
    window.begin(page(tasks, None))
    seen = ids(window)
    while (start := window.next) is not None:
        window.add_after(page(tasks, start), start)
        assert len(window.rows) <= PAGES_MAX * PAGE
        seen += ids(window)[-PAGE:]
    assert seen == [task.id for task in tasks]
    while (previous := window.previous()) is not None:
        window.add_before(page(tasks, previous[0]), previous[0])
        assert len(window.rows) <= PAGES_MAX * PAGE
    assert ids(window) == [task.id for task in tasks[: PAGES_MAX * PAGE]]
    assert window.at_start


def test_a_page_that_is_no_longer_wanted_is_ignored() -> None:
    tasks = server(50)
    window = TaskWindow()
    window.begin(page(tasks, None))
    late = page(tasks, window.next)
    window.add_after(late, "elsewhere")
    window.add_before(late, None)
    assert ids(window) == [task.id for task in tasks[:PAGE]]


def test_an_empty_page_that_goes_on_moves_on() -> None:
    tasks = server(50)
    window = TaskWindow()
    window.begin(page(tasks, None))
    start = window.next
    window.add_after(TaskPage((), "t000029"), start)
    assert (len(window.rows), window.next) == (PAGE, "t000029")


def test_new_tasks_come_in_before_the_others_and_none_is_lost() -> None:
    tasks = server(40)
    window = TaskWindow()
    window.begin(page(tasks, None))
    window.add_after(page(tasks, window.next), window.next)
    newer = [Task(id=f"new{n}", type="x", status="pending") for n in range(4)]
    window.refresh(None, page(newer + tasks, None))
    assert ids(window) == [task.id for task in newer + tasks[:20]]
    start = window.next
    window.add_after(page(newer + tasks, start), start)
    assert ids(window) == [task.id for task in newer + tasks[:30]]


def test_more_new_ones_than_a_page_are_counted_and_nothing_moves() -> None:
    tasks = server(40)
    window = TaskWindow()
    window.begin(page(tasks, None))
    newer = [Task(id=f"new{n}", type="x", status="pending") for n in range(50)]
    window.refresh(None, page(newer + tasks, None))
    assert ids(window) == [task.id for task in tasks[:PAGE]]
    assert window.new_above == PAGE
    window.begin(page(newer + tasks, None))
    assert (window.new_above, ids(window)[0]) == (0, "new0")


def test_the_first_page_does_not_grow_for_ever() -> None:
    tasks = server(PAGE * 2)
    window = TaskWindow()
    window.begin(page(tasks, None))
    for number in range(FIRST_PAGE_ROWS_MAX):
        tasks = [Task(id=f"new{number:05}", type="x", status="pending"), *tasks]
        window.refresh(None, page(tasks, None))
        assert len(window.rows) <= FIRST_PAGE_ROWS_MAX
    assert window.new_above


def test_what_is_gone_goes_and_what_has_changed_is_new() -> None:
    tasks = server(30)
    window = TaskWindow()
    window.begin(page(tasks, None))
    start = window.next
    window.add_after(page(tasks, start), start)
    fewer = [task for task in tasks if task.id not in ("t000003", "t000013")]
    window.refresh(None, page(fewer, None))
    window.refresh(start, page(fewer, start))
    assert "t000003" not in ids(window)
    assert "t000013" not in ids(window)
    assert ids(window)[:3] == ["t000000", "t000001", "t000002"]
    everything = server(3)
    window.refresh(None, page(everything, None))
    assert ids(window) == [task.id for task in everything], "the whole list is on its first page now"
    assert window.next is None


@pytest.mark.parametrize(
    ("to", "status", "ended"),
    [("processing", "processing", False), ("completed", "completed", True), ("pending", "pending", False)],
)
def test_an_event_changes_its_row(to: str, status: str, ended: bool) -> None:
    event = Event("t000001", "x", "q", to, "2026-01-01T00:00:00.5Z", before="pending", attempt=2, node="n", partition=1)
    window = TaskWindow()
    window.begin(page(server(5), None))
    assert window.apply_events([event])
    assert not window.apply_events([Event("other", "x", "q", to, "2026-01-01T00:00:00Z")])
    task = window.rows[1]
    assert (task.status, task.attempt, task.node, task.completed_at is not None) == (status, 2, "n", ended)
    assert after(task, event).started_at == task.started_at

"""Every key on every screen, and what it does there."""

from __future__ import annotations

import re

import pytest
from textual.widgets import Collapsible, Input

from tests.support.fake_cluster import FakeCluster
from tests.tui.build import console, populated, running, see, settled, text_of, until, work_on
from tq_tui import keys
from tq_tui.app import Console
from tq_tui.client.models import Event
from tq_tui.screens.events import EventsScreen
from tq_tui.screens.help import CallsScreen, HelpScreen
from tq_tui.screens.nodes import NodesScreen, PartitionMap
from tq_tui.screens.task_detail import TaskScreen
from tq_tui.screens.tasks import PAGE, TaskListScreen
from tq_tui.widgets.rows import RowTable


def listed(app: Console) -> TaskListScreen:
    assert isinstance(app.screen, TaskListScreen)
    return app.screen


def here(app: Console) -> str | None:
    """The task under the cursor."""
    return listed(app).table.current_key


def events(*moves: tuple[str, str | None, str]) -> list[Event]:
    return [
        Event(task_id, "email", "default", to, "2027-01-15T08:00:00.123Z", before, 1, "node-1", 3)
        for task_id, before, to in moves
    ]


@pytest.mark.parametrize("kind", [name for _, name, _ in keys.SCREENS])
async def test_every_key_does_what_the_table_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(populated()) as (app, pilot):
        app.go(kind)
        await settled(app, pilot)
        done: list[str] = []
        monkeypatch.setattr(app, "action_act", done.append)
        monkeypatch.setattr(app, "action_command_palette", lambda: done.append("palette"))
        for act in keys.available(kind, readonly=False):
            for key in act.keys:
                done.clear()
                await pilot.press(key)
                app.release_keys(keep=False)  # no dialog comes for an action that is only written down
                assert done == [act.id], f"{key} on {kind}"


async def test_readonly_keys_do_nothing() -> None:
    fake = populated()
    async with running(fake, readonly=True) as (app, pilot):
        for number, kind in (("2", keys.TASKS), ("4", keys.NODES)):
            await pilot.press(number)
            await settled(app, pilot)
            for act in keys.ACTS:
                if act.changes and act.id != "reverse" and kind in act.where:
                    await pilot.press(act.keys[0])
            await pilot.pause()
            assert app.screen is app.screen_stack[0]
        assert fake.ordered == []
        assert "read-only" in text_of(app).split("\n")[0]
        assert " n new" not in text_of(app)


async def test_screens_by_digit_bracket_and_click() -> None:
    async with running(populated()) as (app, pilot):
        for key, name, _ in keys.SCREENS:
            await pilot.press(key)
            assert app.kind == name
        await pilot.press("right_square_bracket")
        assert app.kind == keys.OVERVIEW
        await pilot.press("left_square_bracket")
        assert app.kind == keys.EVENTS
        await pilot.click("TabLine", offset=(14, 0))
        await pilot.pause()
        assert app.kind == keys.TASKS


async def test_escape_closes_what_is_open_and_leads_nowhere_else() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("4", "2")
        await settled(app, pilot)
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.kind == keys.TASK
        await pilot.press("escape")
        assert app.kind == keys.TASKS
        await pilot.press("escape", "escape")
        assert app.kind == keys.TASKS, "nothing was open"
        await pilot.press("enter", "5", "3", "escape")
        assert app.kind == keys.TASK, "it was not opened from a list this time"
        assert app.is_running
        await pilot.press("q")
    assert app.return_value == 0


async def test_ctrl_c_quits_on_a_screen() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2", "ctrl+c")
    assert app.return_value == 0


# --- moving ---
async def test_moving_by_arrows_letters_pages_and_mouse() -> None:
    async with running(populated(), size=(80, 14)) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        for pressed, place in (
            ("down", 1), ("j", 2), ("k", 1), ("up", 0), ("up", 0), ("pagedown", 8), ("ctrl+f", 16), ("ctrl+b", 8),
            ("pageup", 0), ("end", 23), ("home", 0), ("G", 23), ("g", 0),
        ):  # fmt: skip
            await pilot.press(pressed)
            assert listed(app).table.cursor == place, pressed
        await pilot.click("#list", offset=(10, 4))
        assert listed(app).table.cursor == 3
        listed(app).table.action_move(3)
        await pilot.double_click("#list", offset=(10, 2))
        await settled(app, pilot)
        assert app.kind == keys.TASK


async def test_the_map_is_walked_and_clicked() -> None:
    async with running(populated(), size=(80, 24)) as (app, pilot):
        await pilot.press("4", "tab")
        screen = app.screen
        assert isinstance(screen, NodesScreen)
        plan = screen.query_one(PartitionMap)
        assert plan.has_focus
        for pressed, chosen in (
            ("right", 1),
            ("l", 2),
            ("left", 1),
            ("h", 0),
            ("G", 63),
            ("home", 0),
            ("end", 63),
            ("g", 0),
        ):
            await pilot.press(pressed)
            assert plan.chosen == chosen
        await pilot.click("#map", offset=(7 + 12 + 1, 1))
        assert plan.chosen == 12
        assert "partition 12 " in text_of(app)
        await pilot.press("tab", "down", "y")
        assert app.clipboard == "node-2"


async def test_a_narrow_map_is_walked_by_lines() -> None:
    async with running(populated(), size=(60, 16)) as (app, pilot):
        await pilot.press("4", "tab", "down")
        plan = app.screen.query_one(PartitionMap)
        assert plan.chosen == 50
        assert "▼" in text_of(app), "its block is in sight"
        await pilot.press("up")
        assert plan.chosen == 0


# --- lists ---
async def test_filtering_as_one_types() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        await pilot.press("slash", *"status:failed type:thumb")
        await pilot.press("enter")
        await settled(app, pilot)
        assert "nothing matches" in text_of(app)
        await pilot.press("slash", *"nail", "enter")
        await settled(app, pilot)
        assert "filter: status:failed type:thumbnail" in text_of(app)
        assert {task.type for task in listed(app).window.rows} == {"thumbnail"}
        assert {task.status for task in listed(app).window.rows} == {"failed"}
        await pilot.press("slash", "ctrl+u", *"status:nonsense", "enter")
        await pilot.pause()
        assert "no state 'nonsense'" in text_of(app)
        listed(app)._refresh_page()
        await settled(app, pilot)
        assert "no state 'nonsense'" in text_of(app), "an answer that comes in does not wipe it away"
        await pilot.press("escape")
        await settled(app, pilot)
        assert len(listed(app).table.rows) == 24


async def test_letters_in_the_filter_are_letters() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2", "slash", *"qKn?:2")
        assert app.screen.query_one("#filter", Input).value == "qKn?:2"
        assert app.kind == keys.TASKS
        await pilot.press("escape")
        assert listed(app).table.has_focus


async def test_sorting() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        first = here(app)
        await pilot.press("S")
        await settled(app, pilot)
        assert "oldest first" in text_of(app)
        await pilot.press("g")
        assert here(app) != first
        await pilot.press("s")
        await settled(app, pilot)
        assert "latest due first" in text_of(app)


async def test_marks_and_copies() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        await pilot.press("y")
        assert app.clipboard == "task-0000"
        await pilot.press("Y")
        await settled(app, pilot)
        assert '"id": "task-0000"' in app.clipboard
        await pilot.press("c")
        assert app.clipboard == "curl 'http://127.0.0.1:8080/tasks/status?id=task-0000'"
        await pilot.press("space", "space", "y")
        assert app.clipboard == "task-0000\ntask-0001"
        assert "2 marked" in text_of(app)
        await pilot.press("a")
        assert "24 marked" in text_of(app)
        await pilot.press("u")
        assert "marked" not in text_of(app).split("\n")[2]
        await pilot.press("space", "escape")
        assert listed(app).table.marks == set()


async def test_live_updates_never_move_the_cursor_off_its_task() -> None:
    fake = populated()
    async with running(fake, size=(80, 24)) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        await pilot.press("down", "down")
        mine = here(app)
        for number in range(24):
            fake.add("email", id=f"new-{number}", created_at=fake.now, payload=None)
            fake.advance(1)
            listed(app)._refresh_page()
            await settled(app, pilot)
            assert here(app) == mine
            assert f"▸ {mine}" in text_of(app), "and it stays in sight"
        assert len(listed(app).table.rows) == 48


async def test_an_event_changes_the_row_at_once() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        assert re.search(r"task-0001 +image +○ pending", text_of(app))
        listed(app).events_received(events(("task-0001", "pending", "processing")))
        await pilot.pause()
        assert re.search(r"task-0001 +image +▶ processing", text_of(app))


async def test_a_million_tasks_are_paged_in_flat_memory() -> None:
    fake = FakeCluster()
    fake.million = 1_000_000
    async with running(fake) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        screen = listed(app)
        for _ in range(11):
            await pilot.press("G")
            await settled(app, pilot)
        assert len(screen.window.rows) <= 8 * PAGE
        place = int((here(app) or "").removeprefix("task-"))
        assert place >= 10 * PAGE
        assert f"Tasks {place + 1:,}".replace(",", " ") in text_of(app)
        for _ in range(40):
            await pilot.press("g")
            await settled(app, pilot)
            if screen.window.at_start and here(app) == "task-0000000":
                break
        assert here(app) == "task-0000000"


async def test_an_error_is_said_and_passes() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        for name in fake.names:
            fake.stop(name, found_out=False)
        await pilot.press("2")
        await settled(app, pilot)
        assert "connection refused" in text_of(app)
        for name in fake.names:
            fake.bring_back(name)
        listed(app).reload()
        await settled(app, pilot)
        assert len(listed(app).table.rows) == 24
        assert "refused" not in text_of(app)


# --- one task ---
async def test_the_story_of_a_task() -> None:
    fake = populated()
    async with running(fake, size=(120, 40)) as (app, pilot):
        fake.add("email", id="mine", payload={"to": "日本語", "list": [1, 2]})
        fake.start("mine")
        fake.fail("mine", "no [such] mailbox")
        app.open_task("mine")
        await settled(app, pilot)
        text = text_of(app)
        for words in (
            "✘ failed",
            "Failed for good after 1 attempt",
            "Attempts (1)",
            '"to": "日本語"',
            "no [such] mailbox",
            "Traceback",
        ):
            assert words in text
        await pilot.press("o")
        assert all(fold.collapsed for fold in app.screen.query(Collapsible) if fold.display)
        await pilot.press("o")
        assert not any(fold.collapsed for fold in app.screen.query(Collapsible) if fold.display)
        await pilot.press("w")
        await pilot.pause()
        assert "begins anew" in text_of(app)
        await pilot.press("r")
        await until(pilot, lambda: fake.held["mine"].status == "pending")


async def test_a_task_is_read_again_when_it_changes() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        app.open_task("task-0001")
        await settled(app, pilot)
        screen = app.screen
        assert isinstance(screen, TaskScreen)
        assert "○ pending" in text_of(app)
        fake.start("task-0001")
        screen.events_received(events(("other", None, "pending")))
        screen.events_received(events(("task-0001", "pending", "processing")))
        await settled(app, pilot)
        assert "▶ processing" in text_of(app)
        app.open_task("never-was")
        await settled(app, pilot)
        assert "no task never-was" in text_of(app)


# --- events ---
async def test_events_are_followed_held_and_found() -> None:
    async with running(populated(), size=(80, 14)) as (app, pilot):
        await pilot.press("6")
        screen = app.screen
        assert isinstance(screen, EventsScreen)

        async def hear(*moves: tuple[str, str | None, str]) -> None:
            app._pending += events(*moves)
            app._deliver_events()
            screen._draw()
            await pilot.pause()

        await hear(*((f"t{n:02}", None, "pending") for n in range(30)))
        assert "▸ 08:00:00.123 t29" in text_of(app)
        assert "following" in text_of(app)
        await pilot.press("up")
        await hear(("t30", None, "pending"))
        assert "▸ 08:00:00.123 t28" in text_of(app), "who looks at something is left there"
        await pilot.press("f")
        assert "▸ 08:00:00.123 t30" in text_of(app)
        await pilot.press("slash", *"t1 !t11")
        await pilot.pause()
        assert "Events 9 of 31" in text_of(app)
        await pilot.press("enter", "y")
        assert app.clipboard == "t19"
        await pilot.press("escape")
        await pilot.pause()
        assert "Events 31 of 31" in text_of(app)
        app._missed = True
        app._deliver_events()
        screen._draw()
        await pilot.pause()
        assert "1 gap" in text_of(app)
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.kind == keys.TASK


# --- the console ---
async def test_freezing_holds_what_is_shown_and_counts() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("p")
        fake.stop("node-2")
        await work_on(app, fake, rounds=3)
        app._pending += events(("t", None, "pending"))
        app._deliver_events()
        await pilot.pause()
        assert "HEALTHY" in text_of(app)
        assert "❄ frozen" in text_of(app)
        await pilot.press("p")
        await pilot.pause()
        assert "DEGRADED" in text_of(app)
        assert "frozen" not in text_of(app)


async def test_help_lists_what_works_here_and_is_searched() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("4", "question_mark")
        assert isinstance(app.screen, HelpScreen)
        assert "What works on Nodes" in text_of(app)
        assert "Kill" not in text_of(app)
        await pilot.press(*"drain")
        await pilot.pause()
        assert "Drain a node" in text_of(app)
        assert "Rebalance" not in text_of(app)
        await pilot.press("down", "up", "pagedown", "pageup", "escape")
        assert app.kind == keys.NODES
        assert not isinstance(app.screen, HelpScreen)


async def test_the_palette_has_every_action_with_its_key() -> None:
    async with running(populated(), size=(120, 60)) as (app, pilot):
        await pilot.press("4", "colon")
        await until(pilot, lambda: "Drain a node" in text_of(app))
        text = text_of(app)
        for act in keys.available(keys.NODES, readonly=False)[:10]:
            assert act.title.split(":")[0] in text
        await pilot.press(*"screen dead")
        await until(pilot, lambda: "Screen: Dead" in text_of(app))
        await pilot.pause(0.3)
        await pilot.press("enter")
        await until(pilot, lambda: app.kind == keys.DEAD)


async def test_the_calls_behind_what_was_done() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        await pilot.press("tilde")
        assert isinstance(app.screen, CallsScreen)
        assert "/tasks/list?sort=-created_at&limit=200&scope=cluster" in text_of(app)
        await pilot.press("enter")
        assert app.clipboard.startswith("curl 'http://127.0.0.1:8080/tasks/list")
        await pilot.press("escape")
        assert app.kind == keys.TASKS


async def test_themes_change_and_the_colours_are_not_needed() -> None:
    async with running(populated()) as (app, pilot):
        names = [app.theme]
        for _ in range(3):
            await pilot.press("ctrl+t")
            names.append(app.theme)
        assert names[0] == names[3]
        assert len(set(names)) == 3


async def test_no_color_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    fake = populated()
    app = console(fake)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await see(app, fake)
        await pilot.pause()
        assert app.no_color
        assert "● active" in text_of(app)


async def test_a_smaller_window_shows_the_same() -> None:
    async with running(populated(), size=(120, 40)) as (app, pilot):
        await pilot.resize_terminal(60, 16)
        await pilot.pause()
        await pilot.press("2")
        await settled(app, pilot)
        table = app.screen.query_one("#list", RowTable)
        assert table.size.width == 60
        assert "? help" in text_of(app)

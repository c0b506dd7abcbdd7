"""Dialogs and drawings where there is little room: what is asked, and what can be answered, are never out of sight."""

from __future__ import annotations

import asyncio

import pytest
from textual import events
from textual.widgets import Input, TextArea

from tests.tui.build import populated, running, settled, text_of, until
from tests.tui.test_state import fold as folded
from tests.tui.test_state import polled, whole
from tq_tui import charts
from tq_tui.client.models import Metrics
from tq_tui.screens.dialogs import ConfirmScreen
from tq_tui.screens.submit import SubmitScreen
from tq_tui.screens.tasks import TaskListScreen
from tq_tui.state import health
from tq_tui.state.cluster_view import Added, ClusterView, Failed
from tq_tui.widgets.plain import content


@pytest.mark.parametrize("key", ["K", "r"])
async def test_the_question_and_its_answers_are_in_sight_on_the_smallest_terminal(key: str) -> None:
    fake = populated()
    for number in range(9):
        fake.add(
            "email", "processing" if key == "K" else "failed", id=f"task-01a20e01-6934-7f64-b51f-1aee48b8b81{number}"
        )
    async with running(fake, size=(60, 16)) as (app, pilot):
        await pilot.press("2", "slash", *"01a20e01", "enter")
        await settled(app, pilot)
        await pilot.press("a", key)
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.pause()
        text = text_of(app)
        assert ("Kill 9 tasks?" if key == "K" else "Retry 9 tasks?") in text
        assert "No, leave it" in text
        assert "n or Esc: no" in text
        assert "task-01a20e01-6934-7f64-b51f-1aee48b8b81" in text, "and what it is about, a line each"


async def test_the_form_has_its_buttons_in_sight_on_the_smallest_terminal() -> None:
    async with running(populated(), size=(60, 16)) as (app, pilot):
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, SubmitScreen))
        await pilot.pause()
        text = text_of(app)
        for words in ("Submit a task", "payload", "attempts", "Submit  ctrl+s", "Leave it  Esc"):
            assert words in text


async def test_a_tab_has_its_effect_before_the_next_early_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the form takes for it: keys are not handed over by the clock."""
    async with running(populated()) as (app, pilot):
        slow = app.action_focus_next

        async def late() -> None:
            await asyncio.sleep(0.1)
            slow()

        monkeypatch.setattr(app, "action_focus_next", late)
        for key in ("n", *"Xy", "tab", *"{}", "tab", "7"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: isinstance(app.screen, SubmitScreen) and app.screen.is_ready)
        await until(pilot, lambda: app.screen.query_one("#priority", Input).value == "7")
        assert app.screen.query_one("#type", Input).value == "Xy"
        assert app.screen.query_one("#payload", TextArea).text == "{}"


async def test_every_call_is_in_the_list_of_calls() -> None:
    async with running(populated(), size=(120, 40)) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        for _ in range(3):
            await pilot.press("s")
            await settled(app, pilot)
        await pilot.press("tilde")
        await pilot.pause()
        text = text_of(app)
        for sort in ("-created_at", "created_at", "-run_at", "run_at"):
            assert f"sort={sort}&" in text


# --- the filter line, and marks ---
async def test_filters_from_before_come_back() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        for typed in ("status:failed", "type:email", "status:failed"):
            await pilot.press("slash", "ctrl+u", *typed, "enter")
            await settled(app, pilot)
        await pilot.press("escape", "slash")
        box = app.screen.query_one("#filter", Input)
        for pressed, shown in (
            ("up", "status:failed"),
            ("up", "type:email"),
            ("up", "type:email"),
            ("down", "status:failed"),
        ):
            await pilot.press(pressed)
            assert box.value == shown
        await pilot.press("down")
        assert box.value == ""


async def test_a_field_that_is_none_is_said_where_nothing_matches() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2", "slash", *"statos:failed", "enter")
        await settled(app, pilot)
        assert "nothing matches this filter; fields are status: type: queue: node:" in text_of(app)


async def test_a_range_is_marked() -> None:
    async with running(populated()) as (app, pilot):
        await pilot.press("2")
        await settled(app, pilot)
        screen = app.screen
        assert isinstance(screen, TaskListScreen)
        await pilot.press("down", "space", "down", "down", "v")
        assert screen.table.marks == {f"task-000{n}" for n in (1, 2, 3, 4)}
        await pilot.press("u", "v")
        assert screen.table.marks == {"task-0004"}, "the one under the cursor where none is marked"


# --- cards ---
@pytest.mark.parametrize("width", [25, 37, 66])
def test_every_line_of_a_card_is_as_wide_as_the_card(width: int) -> None:
    new = ClusterView()
    for port in (23480, 23481):
        new = folded(Added(f"localhost:{port}", 10.0), view=new)
    gone = folded(Failed("127.0.0.1:8082", 12.0, "no route to host " * 3), view=whole())
    for view in (new, whole(), gone):
        for node in view.nodes:
            assert {charts.length(line) for line in charts.card(view, node, width)} == {width}
    assert "80 " in content(charts.card(new, new.nodes[0], 25)[:1]).plain, "ports tell them apart"


def test_a_node_that_is_down_claims_nothing_about_now() -> None:
    view = folded(Failed("127.0.0.1:8082", 12.0, "connection refused"), view=whole())
    down = next(one for one in view.nodes if not one.is_up)
    assert "in sync" in content(charts.card(view, view.nodes[0], 40)).plain
    text = content(charts.card(view, down, 40)).plain
    assert "connection refused" in text
    assert "slots" in text
    assert "0/0" not in text
    assert "in sync" not in text


def test_no_line_of_a_node_is_cut_on_the_smallest_terminal() -> None:
    view = whole()
    view = folded(
        *(polled(name, 12.0, metrics=Metrics(busy=12, idle=4, started_at_s=2.0)) for name in ("node-1",)), view=view
    )
    assert not any("…" in text for line in charts.node_lines(view, 58) for text, _ in line)


def test_a_mix_of_versions_is_said() -> None:
    view = folded(polled("node-1", 12.0, metrics=Metrics(version="0.10.0")), view=whole())
    assert "versions" not in health.summary(view)
    view = folded(polled("node-2", 12.0, metrics=Metrics(version="0.9.0")), view=view)
    assert "versions 0.9.0 and 0.10.0" in health.summary(view)


def test_what_has_just_gone_down_is_down() -> None:
    view = folded(Failed("127.0.0.1:8082", 12.0, "connection refused"), view=whole())
    down = next(one for one in view.nodes if not one.is_up)
    assert health.node_trouble(view, down) == "down (connection refused)"

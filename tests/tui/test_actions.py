"""What is done to tasks, queues and nodes: asked, confirmed with default No, sent to a node that lives, reported."""

from __future__ import annotations

import json

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Button, Input, TextArea

from tests.tui.build import populated, running, see, settled, text_of, until
from tq_tui import actions
from tq_tui.app import Console
from tq_tui.client.api import Refused, Unreachable
from tq_tui.screens.dialogs import ConfirmScreen, PromptScreen
from tq_tui.screens.submit import SubmitScreen


async def dialog(app: Console, pilot: Pilot[int], kind: type = ConfirmScreen) -> str:
    await until(pilot, lambda: isinstance(app.screen, kind))
    await pilot.pause()
    return text_of(app)


async def gone(app: Console, pilot: Pilot[int]) -> None:
    await until(pilot, lambda: len(app.screen_stack) == 1)
    await pilot.pause()


async def on_tasks(app: Console, pilot: Pilot[int], typed: str = "") -> None:
    await pilot.press("2")
    await settled(app, pilot)
    if typed:
        await pilot.press("slash", "ctrl+u", *typed, "enter")
        await settled(app, pilot)


def said(app: Console) -> str:
    return "\n".join(notification.message for notification in app._notifications)


# --- submit ---
async def test_submitting_by_typing() -> None:
    fake = populated()
    async with running(fake, size=(80, 24)) as (app, pilot):
        await pilot.press("n")
        await dialog(app, pilot, SubmitScreen)
        await pilot.press(*"email", "tab", *'{"to": "a@b.c"', "space", "backspace")
        await pilot.pause()
        assert "✘ line 1" in text_of(app)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(app.screen, SubmitScreen), "it is not sent while it is wrong"
        await pilot.press("}")
        await pilot.pause()
        assert "✔ JSON object, 1 field" in text_of(app)
        await pilot.press("tab", "7", "tab", *"5m", "tab", *"bulk", "tab", "4", "ctrl+s")
        await until(pilot, lambda: fake.ordered)
        path, body = fake.ordered[0]
        sent = json.loads(body)
        assert path == "/tasks/submit"
        assert sent.pop("id").startswith("task-")
        assert sent == {
            "type": "email", "payload": {"to": "a@b.c"}, "priority": 7, "delay": 300.0, "queue": "bulk", "max_attempts": 4,
        }  # fmt: skip
        await until(pilot, lambda: "Submitted: scheduled on node-" in said(app))
        await pilot.press("3")
        await settled(app, pilot)
        assert "◷ scheduled  email" in text_of(app)


async def test_the_form_says_what_is_wrong_and_asks_before_it_loses_anything() -> None:
    fake = populated()
    async with running(fake, size=(60, 16)) as (app, pilot):
        await pilot.press("n")
        await dialog(app, pilot, SubmitScreen)
        await pilot.press("escape")
        await gone(app, pilot)
        await pilot.press("n")
        await dialog(app, pilot, SubmitScreen)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert "Not sent" in said(app)
        await pilot.press("down", "down")
        assert app.screen.query_one("#type", Input).value == "image"
        app.screen.query_one("#priority", Input).value = "12"
        app.screen.query_one("#delay", Input).value = "soon"
        await pilot.pause()
        says = [str(app.screen.query_one(f"#{name}-says").render()) for name in ("priority", "delay")]
        assert says == ["✘ 0 to 9", "✘ such as 90, 1.5s, 5m, 2h or 1d"]
        await pilot.press("escape")
        await dialog(app, pilot)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, SubmitScreen))
        await pilot.press("escape")
        await dialog(app, pilot)
        await pilot.press("y")
        await gone(app, pilot)
        assert fake.ordered == []


async def test_submitting_again_takes_everything_along() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        fake.add(
            "report",
            "completed",
            id="old",
            payload={"deep": [1]},
            priority=8,
            queue="bulk",
            tags={"a": "b"},
            max_attempts=9,
        )
        app.open_task("old")
        await settled(app, pilot)
        await pilot.press("N")
        await dialog(app, pilot, SubmitScreen)
        assert app.screen.query_one("#payload", TextArea).text == '{\n  "deep": [\n    1\n  ]\n}'
        await pilot.click("#send")
        await until(pilot, lambda: fake.ordered)
        sent = json.loads(fake.ordered[0][1])
        assert sent.pop("id") != "old"
        assert sent == {
            "type": "report", "payload": {"deep": [1]}, "priority": 8, "queue": "bulk", "max_attempts": 9, "tags": {"a": "b"},
        }  # fmt: skip


async def test_a_submit_goes_to_another_node_when_one_is_gone() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        fake.stop("node-1", found_out=False)
        await pilot.press("n")
        await dialog(app, pilot, SubmitScreen)
        await pilot.press(*"email", "ctrl+s")
        await until(pilot, lambda: "Submitted" in said(app))
        assert [path for path, _ in fake.ordered] == ["/tasks/submit"] * 2


async def test_an_unknown_outcome_is_said_with_the_id() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        for _ in fake.names:
            fake.refuse(Unreachable("no answer in time", sent=True))
        await pilot.press("n")
        await dialog(app, pilot, SubmitScreen)
        await pilot.press(*"email", "ctrl+s")
        await until(pilot, lambda: "Outcome unknown" in said(app))
        assert "Its id is task-" in said(app)


# --- kill and retry ---
async def test_killing_one_is_confirmed_with_default_no() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "status:processing")
        await pilot.press("K")
        text = await dialog(app, pilot)
        assert "Kill task-0002?" in text
        assert "1 running handler is stopped" in text
        assert app.screen.query_one("#no", Button).has_focus
        await pilot.press("enter")
        await gone(app, pilot)
        for key in ("n", "escape", "q"):
            await pilot.press("K")
            await dialog(app, pilot)
            await pilot.press(key)
            await gone(app, pilot)
        assert fake.ordered == []
        await pilot.press("K")
        await dialog(app, pilot)
        await pilot.press("right", "enter")
        await until(pilot, lambda: fake.held["task-0002"].status == "cancelled")
        await until(pilot, lambda: "Killed task-0002" in said(app))


async def test_a_marked_set_is_killed_and_each_result_counts() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot)
        await pilot.press("a", "K")
        text = await dialog(app, pilot)
        assert "Kill 12 tasks?" in text
        assert "4 running handlers are stopped" in text
        assert "8 waiting tasks will not run" in text
        assert "12 marked tasks ended already" in text
        fake.finish("task-0002")
        await pilot.press("y")
        await until(pilot, lambda: "Killed 11, 1 not: the task is completed" in said(app))
        assert fake.held["task-0008"].status == "cancelled"
        assert "task-0002" in app.screen.query_one("#list").marks, "what did not succeed stays marked"  # type: ignore[attr-defined]


async def test_what_was_waiting_can_be_put_back() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "status:pending")
        await pilot.press("K")
        await dialog(app, pilot)
        await pilot.press("y")
        await until(pilot, lambda: fake.held["task-0001"].status == "cancelled")
        await until(pilot, lambda: "z undoes it" in said(app))
        await pilot.press("z")
        await until(pilot, lambda: fake.held["task-0001"].status == "pending")
        await pilot.press("z")
        await until(pilot, lambda: "Nothing to undo" in said(app))


async def test_all_that_match_are_counted_and_the_number_is_typed() -> None:
    fake = populated()
    for number in range(2_500):
        fake.add("bulk", id=f"bulk-{number:04}")
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "type:bulk")
        await pilot.press("X")
        text = await dialog(app, pilot)
        assert "Kill 2 500 tasks?" in text
        assert "type:bulk" in text
        assert app.screen.query_one("#yes", Button).disabled
        await pilot.press(*"250", "enter")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScreen)
        await pilot.press("0", "enter")
        await until(pilot, lambda: "Killed 2500" in said(app), 30)
        assert sum(task.status == "cancelled" for task in fake.held.values()) == 2_504
        assert fake.held["task-0001"].status == "pending", "what does not match is left alone"


async def test_many_marked_ones_have_their_number_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "TYPED_FROM", 3)
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "status:pending")
        await pilot.press("a", "K")
        await dialog(app, pilot)
        await pilot.press("y", "escape")
        await gone(app, pilot)
        assert fake.ordered == []


async def test_dead_letters_are_retried() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("5")
        await settled(app, pilot)
        await pilot.press("r")
        await until(pilot, lambda: fake.held["task-0003"].status == "pending")
        await pilot.press("E")
        await dialog(app, pilot)
        await pilot.press("3", "enter")
        await until(pilot, lambda: not any(task.status == "failed" for task in fake.held.values()))


async def test_what_can_not_be_is_said() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "status:completed")
        await pilot.press("K")
        await until(pilot, lambda: "Nothing to kill" in said(app))
        await pilot.press("r")
        await until(pilot, lambda: "Only failed and cancelled" in said(app))
        await pilot.press("X")
        await until(pilot, lambda: "no task that matches can be" in said(app))
        await on_tasks(app, pilot, "nosuch")
        for key in ("K", "r", "N"):
            await pilot.press(key)
        await until(pilot, lambda: said(app).count("No task is chosen") == 3)


# --- queues ---
async def test_pausing_a_queue_and_taking_it_back() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("P")
        await dialog(app, pilot, PromptScreen)
        await pilot.press("enter")
        text = await dialog(app, pilot)
        assert "Pause queue default?" in text
        await pilot.press("y")
        await until(pilot, lambda: fake.paused == {"default"})
        await until(pilot, lambda: "z undoes it" in said(app))
        await pilot.press("z")
        await until(pilot, lambda: not fake.paused)
        fake.paused.add("bulk")
        await see(app, fake)
        await pilot.pause()
        assert "paused: bulk" in text_of(app)
        await pilot.press("P")
        await dialog(app, pilot, PromptScreen)
        await pilot.press("enter")
        await until(pilot, lambda: not fake.paused)
        await pilot.press("P")
        await dialog(app, pilot, PromptScreen)
        await pilot.press("escape")
        await gone(app, pilot)


# --- nodes ---
@pytest.mark.parametrize(
    ("key", "path", "words"),
    [
        ("D", "/cluster/drain", "Drain node-2?"),
        ("M", "/cluster/remove", "Remove node-2?"),
        ("S", "/cluster/shutdown", "Shut down node-2?"),
        ("B", "/cluster/rebalance", "Rebalance the cluster?"),
    ],
)
async def test_orders_to_nodes(key: str, path: str, words: str) -> None:
    fake = populated()
    async with running(fake, size=(80, 24)) as (app, pilot):
        await pilot.press("4", "down", key)
        text = await dialog(app, pilot)
        assert words in text
        if key == "M":
            await pilot.press(*"node-2", "enter")
        else:
            await pilot.press("enter")
            await gone(app, pilot)
            assert fake.ordered == []
            await pilot.press(key)
            await dialog(app, pilot)
            await pilot.press("y")
        await until(pilot, lambda: fake.ordered)
        assert fake.ordered[0] == (path, "" if key == "B" else "node-2")


@pytest.mark.parametrize("way", ["z", "D"])
async def test_a_drain_is_taken_back(way: str) -> None:
    fake = populated()
    async with running(fake, size=(80, 24)) as (app, pilot):
        await pilot.press("4", "down", "D")
        await dialog(app, pilot)
        await pilot.press("y")
        await until(pilot, lambda: fake.ordered)
        await gone(app, pilot)
        await see(app, fake)
        await pilot.press(way)
        if way == "D":
            assert "Take the drain of node-2 back?" in await dialog(app, pilot)
            await pilot.press("y")
        await until(pilot, lambda: len(fake.ordered) == 2)
        assert fake.ordered[1] == ("/cluster/undrain", "node-2")


async def test_a_shutdown_that_costs_the_quorum_says_so() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        fake.stop("node-3")
        await see(app, fake)
        await pilot.press("4", "S")
        text = await dialog(app, pilot)
        assert "NO QUORUM afterwards: 1 of 3 voters would be left" in text
        assert "It is the leader" in text


async def test_a_refusal_is_said_in_the_nodes_words() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("4", "B")
        await dialog(app, pilot)
        fake.refuse(Refused(409, "refused", "three nodes are the least"))
        await pilot.press("y")
        await until(pilot, lambda: "Not done: three nodes are the least" in said(app))


async def test_what_one_node_can_not_do_another_is_asked() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await pilot.press("4", "B")
        await dialog(app, pilot)
        fake.refuse(Refused(503, "no_controller", "nobody leads"))
        await pilot.press("y")
        await until(pilot, lambda: "spread evenly" in said(app))
        assert len(fake.ordered) == 2


# --- keys that come early ---
async def test_what_is_typed_before_the_form_is_there_is_meant_for_it() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot)
        for key in ("n", *"Kemail", "tab", "X", "7"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await dialog(app, pilot, SubmitScreen)
        await until(pilot, lambda: app.screen.query_one("#payload", TextArea).text == "X7")
        assert app.screen.query_one("#type", Input).value == "Kemail"


async def test_a_yes_from_before_the_question_is_none() -> None:
    fake = populated()
    async with running(fake) as (app, pilot):
        await on_tasks(app, pilot, "status:processing")
        for key in "Ky":
            app.post_message(events.Key(key, key))
        await dialog(app, pilot)
        await pilot.pause(0.1)
        assert isinstance(app.screen, ConfirmScreen)
        assert fake.ordered == []


async def test_keys_go_on_when_no_dialog_comes() -> None:
    async with running(populated()) as (app, pilot):
        await on_tasks(app, pilot, "status:completed")
        for key in "K6":
            app.post_message(events.Key(key, key))
        await until(pilot, lambda: app.kind == "events")
        assert "Nothing to kill" in said(app)

"""Actions that change tasks, queues, nodes: each is confirmed, sent to a living node, reported."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from textual.screen import Screen

from tq_tui import format as f
from tq_tui.client.api import ClientError, NodeClient, Refused, Unreachable
from tq_tui.client.models import Submission, Task
from tq_tui.filters import TaskQuery
from tq_tui.requests import Requests, reported
from tq_tui.screens.dialogs import ConfirmScreen, PromptScreen
from tq_tui.screens.submit import SubmitScreen
from tq_tui.state.cluster_view import ClusterView
from tq_tui.state.event_log import EventLog

T = TypeVar("T")
TYPED_FROM = 100
"""Number of marked tasks from which on the user types it to confirm; for all that match, always."""
ALL_MAX = 10_000
"""Tasks of one "kill all" or "retry all"; it can be run again."""
UNDO_S = 10.0
SIMULATED = ("email", "image", "report")
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Undo:
    """``run`` takes the last action back; not offered after ``until_s`` (monotonic)."""

    says: str
    until_s: float
    run: Callable[[], Awaitable[None]]


class _Request(Protocol):
    def __call__(self, client: NodeClient, key: str, /) -> Awaitable[object]: ...


class ActionHost(Protocol):
    """The app as the actions see it: what is chosen and known; how to ask and inform the user."""

    @property
    def view(self) -> ClusterView: ...
    @property
    def events(self) -> EventLog: ...
    def chosen_tasks(self) -> list[Task]: ...
    def chosen_node(self) -> str | None: ...
    def listed(self) -> tuple[TaskQuery, str]:
        """The query of the list in front, and the filter that the user typed for it."""
        ...

    async def push_screen_wait(self, screen: Screen[T], /) -> T: ...
    def notify(self, message: str, *, title: str = ..., markup: bool = ..., **options: Any) -> None: ...
    def progress(self, done: int, of: int) -> None: ...
    def remember(self, task_id: str) -> None: ...
    def tasks_done(self, task_ids: Sequence[str]) -> None: ...
    def nudge(self) -> None: ...


class OperatorActions:
    """The actions of ``keys.ACTS`` that change something, a method each."""

    def __init__(self, console: ActionHost, requests: Requests) -> None:
        self._console, self._requests = console, requests
        self._undo: Undo | None = None

    # --- submitting ---
    async def submit(self, like: Task | None = None) -> None:
        submission = await self._console.push_screen_wait(SubmitScreen(self._types(), like))
        if submission is None:
            return
        await self._send(submission)

    def _types(self) -> list[str]:
        """Types of tasks in the event log, latest first, then those of simulated handlers."""
        seen: dict[str, None] = {}
        for logged in reversed(self._console.events.matching("")):
            seen.setdefault(logged.event.type)
            if len(seen) > 8:
                break
        return list(seen | dict.fromkeys(SIMULATED))

    async def _send(self, submission: Submission) -> None:
        try:
            done = await self._requests.ask(lambda client: client.submit(submission))
        except ClientError as why:
            self._report_failure(f"{submission.type} was not submitted", why, submission.id)
            return
        self._console.remember(done.task_id)
        self._inform(f"Submitted: {done.status} on {done.node}; 3 shows it.", done.task_id)

    async def again(self) -> None:
        """Open the form with the chosen task, read whole: a list or an event may lack parts."""
        chosen = self._console.chosen_tasks()
        if not chosen:
            return self._warn("No task is chosen.")
        try:
            like = await self._requests.ask(lambda client: client.task(chosen[0].id))
        except ClientError as why:
            return self._report_failure(f"{chosen[0].id} can't be read", why)
        return await self.submit(like)

    # --- tasks ---
    async def kill(self) -> None:
        chosen = self._console.chosen_tasks()
        tasks = [task for task in chosen if not task.is_final]
        if not tasks:
            return self._warn("Nothing to kill: it has ended." if chosen else "No task is chosen.")
        running = sum(task.status == "processing" for task in tasks)
        says: list[str] = []
        if running:
            word = "handler is" if running == 1 else "handlers are"
            says.append(f"{running} running {word} stopped, by force after 5 s; what has been done outside stays done.")
        if len(tasks) > running:
            says.append(f"{f.plural(len(tasks) - running, 'waiting task')} will not run.")
        if len(chosen) > len(tasks):
            says.append(f"{f.plural(len(chosen) - len(tasks), 'marked task')} ended already; left alone.")
        title = f"Kill {tasks[0].id}?" if len(tasks) == 1 else f"Kill {f.plural(len(tasks), 'task')}?"
        if await self._confirmed(title, says, f"Kill {len(tasks)}", _count_typed(len(tasks)), _named(tasks)):
            await self._cancel(tasks)
        return None

    async def _cancel(self, tasks: Sequence[Task]) -> None:
        waiting = [task.id for task in tasks if task.status == "pending"]
        done = await self._bulk("Killed", [task.id for task in tasks], lambda client, key: client.cancel(key))
        back = [task_id for task_id in waiting if task_id in done]
        if back:
            self._may_undo(
                f"{f.plural(len(back), 'pending task')} can be put back", lambda: self._restore_pending(back)
            )

    async def _restore_pending(self, task_ids: Sequence[str]) -> None:
        await self._bulk("Put back", task_ids, lambda client, key: client.retry(key))

    async def retry(self) -> None:
        chosen = self._console.chosen_tasks()
        tasks = [task for task in chosen if task.is_retryable]
        if not tasks:
            return self._warn("Only failed and cancelled tasks can be retried." if chosen else "No task is chosen.")
        if len(tasks) > 1:
            says = ["They become pending, with attempts counted from zero."]
            title = f"Retry {f.plural(len(tasks), 'task')}?"
            if not await self._confirmed(title, says, f"Retry {len(tasks)}", _count_typed(len(tasks)), _named(tasks)):
                return None
        await self._bulk("Sent back", [task.id for task in tasks], lambda client, key: client.retry(key))
        return None

    # --- all that match ---
    async def kill_all(self) -> None:
        await self._all("Kill", "Killed", lambda task: not task.is_final, lambda client, key: client.cancel(key))

    async def retry_all(self) -> None:
        await self._all("Retry", "Sent back", lambda task: task.is_retryable, lambda client, key: client.retry(key))

    async def _all(self, verb: str, past: str, wanted: Callable[[Task], bool], request: _Request) -> None:
        """Count the tasks that match, through all pages; the user confirms by typing the number."""
        query, typed = self._console.listed()
        self._inform(f"Counting what {'matches ' + typed if typed else 'is there'} …")
        try:
            found, more = await self._collect(query, wanted)
        except ClientError as why:
            return self._report_failure("The list can't be read", why)
        if not found:
            return self._warn(f"{verb}: no task that matches can be.")
        says = [f"All that match: {typed or 'no filter, so everything'}", ""]
        if more:
            says.append(f"These are the first {f.exact(ALL_MAX)}; there are more, for another time.")
        if verb == "Kill":
            says.append("Running handlers are stopped, by force after 5 s. Waiting tasks will not run.")
        else:
            says.append("They become pending, with attempts counted from zero.")
        says.append("Tasks that come later are not meant.")
        title = f"{verb} {f.plural(len(found), 'task')}?"
        if await self._confirmed(title, says, f"{verb} {len(found)}", str(len(found))):
            await self._bulk(past, found, request)
        return None

    async def _collect(self, query: TaskQuery, wanted: Callable[[Task], bool]) -> tuple[list[str], bool]:
        found: dict[str, None] = {}
        cursor: str | None = None
        while True:
            page_query = TaskQuery(query.choices, query.text, "id", _PAGE, cursor, query.dead)
            page = await self._requests.ask(lambda client, asked=page_query: client.tasks(asked))  # type: ignore[misc]
            found |= dict.fromkeys(task.id for task in page.tasks if wanted(task))
            cursor = page.next
            if cursor is None or len(found) >= ALL_MAX:
                return list(found)[:ALL_MAX], cursor is not None or len(found) > ALL_MAX

    # --- queues ---
    async def pause(self) -> None:
        view = self._console.view
        chosen = self._console.chosen_tasks()
        known = sorted(
            {queue for node in view.living if node.metrics for queue in node.metrics.oldest_age_s} | {"default"}
        )
        value = chosen[0].queue if chosen else view.paused[0] if view.paused else "default"
        words = f"Known: {', '.join(known)}."
        if view.paused:
            words += f" Paused: {', '.join(view.paused)}."
        queue = await self._console.push_screen_wait(
            PromptScreen("Pause a queue, or let it go on", words, value, known)
        )
        if queue is None:
            return
        if queue in view.paused:
            await self._resume(queue)
            return
        says = ["No node starts a task of it any more. What runs, runs on; submits are still taken."]
        if await self._confirmed(f"Pause queue {queue}?", says, "Pause"):
            await self._pause(queue)

    async def _pause(self, queue: str) -> None:
        if await self._one(f"Queue {queue} is paused.", lambda client: client.pause(queue)):
            self._may_undo(f"queue {queue} can go on", lambda: self._resume(queue))

    async def _resume(self, queue: str) -> None:
        if await self._one(f"Queue {queue} goes on.", lambda client: client.resume(queue)):
            self._may_undo(f"queue {queue} can be paused again", lambda: self._pause(queue))

    # --- nodes ---
    async def drain(self) -> None:
        name = self._console.chosen_node()
        member = None if name is None else self._console.view.members.get(name)
        if name is not None and member is not None and member.status == "draining":
            says = ["It takes its share of the partitions again, and starts tasks. Moves that are under way end first."]
            if await self._confirmed(f"Take the drain of {name} back?", says, "Take back"):
                await self._undrain(name)
        elif await self._node(
            "Drain", "is being drained; the map shows the moves",
            ["All its partitions are moved to other nodes, and it starts no more tasks.",
             "It stays a member, and a drain can be taken back."],
            lambda client, name: client.drain(name),
        ):  # fmt: skip
            assert name is not None
            self._may_undo(f"the drain of {name} can be taken back", lambda: self._undrain(name))

    async def _undrain(self, name: str) -> None:
        await self._one(f"{name} takes its share again.", lambda client: client.undrain(name))

    async def remove(self) -> None:
        await self._node(
            "Remove", "leaves the cluster",
            ["A living node is drained first, then leaves for good. One that is down is given up: what only it has is lost.",
             "It can come back only as a new node."],
            lambda client, name: client.remove(name), typed=True,
        )  # fmt: skip

    async def shutdown(self) -> None:
        await self._node(
            "Shut down", "is shutting down",
            ["The process ends as by SIGTERM: running handlers get their time, then are given back.",
             "It stays a member; somebody has to start it again."],
            lambda client, name: client.shutdown(name),
        )  # fmt: skip

    async def _node(self, verb: str, past: str, says: list[str], request: _Request, *, typed: bool = False) -> bool:
        """Confirm an action on the chosen node, and request it. True: the node accepted it."""
        name = self._console.chosen_node()
        if name is None:
            self._warn("No node is chosen, or its name is not known yet.")
            return False
        view = self._console.view
        led, held = view.held(name)
        facts = [f"It leads {led} and holds {held} of {len(view.partitions)} partitions."]
        if name == view.leader and verb != "Drain":
            facts.append("It is the leader: another one is elected.")
        left = sum(node.name != name for node in view.living)
        voters = len(view.voters)
        living = sum(node.name in view.voters for node in view.living if node.name != name)
        if verb == "Shut down" and voters and living < voters // 2 + 1:
            facts.append(f"NO QUORUM afterwards: {living} of {voters} voters would be left.")
        facts.append(f"{f.plural(left, 'other node')} will be there.")
        return await self._confirmed(
            f"{verb} {name}?", [*facts, "", *says], verb, name if typed else ""
        ) and await self._one(f"{name} {past}.", lambda client: request(client, name))

    async def rebalance(self) -> None:
        moving = sum(entry.is_moving for entry in self._console.view.partitions)
        says = ["The cluster moves copies and primaries until all nodes hold as many. Tasks go on meanwhile."]
        if moving:
            says.append(f"{f.plural(moving, 'partition')} moving already.")
        if await self._confirmed("Rebalance the cluster?", says, "Rebalance"):
            await self._one(
                "Partitions are being spread evenly; the map shows the moves.", lambda client: client.rebalance()
            )

    # --- undo ---
    async def undo(self) -> None:
        undo, self._undo = self._undo, None
        if undo is None or undo.until_s < time.monotonic():
            return self._warn(
                f"Nothing to undo: only pauses, drains and kills of pending tasks can be, within {UNDO_S:.0f} s."
            )
        return await undo.run()

    def _may_undo(self, says: str, run: Callable[[], Awaitable[None]]) -> None:
        self._undo = Undo(says, time.monotonic() + UNDO_S, run)
        self._console.notify(f"z undoes it for {UNDO_S:.0f} s: {says}.", timeout=UNDO_S)

    # --- confirming and reporting ---
    async def _confirmed(
        self, title: str, says: Sequence[str], yes: str, typed: str = "", things: Sequence[str] = ()
    ) -> bool:
        return await self._console.push_screen_wait(ConfirmScreen(title, says, yes=yes, typed=typed, things=things))

    async def _one(self, done: str, question: Callable[[NodeClient], Awaitable[Any]]) -> bool:
        try:
            await self._requests.ask(question)
        except ClientError as why:
            self._report_failure("Not done", why)
            return False
        self._inform(done)
        return True

    async def _bulk(self, past: str, keys: Sequence[str], request: _Request) -> set[str]:
        """Request it for each key and report the outcomes; returns the keys that succeeded."""
        outcomes = await self._requests.each(keys, request, self._console.progress)
        words, good = reported(past, outcomes)
        done = {outcome.key for outcome in outcomes if outcome.ok}
        self._console.tasks_done(list(done))
        if good and len(keys) == 1:
            words = f"{past} {keys[0]}"
        self._console.notify(f"{words}.", severity="information" if good else "error", markup=False)
        return done

    def _inform(self, words: str, title: str = "") -> None:
        self._console.notify(words, title=title, markup=False)
        self._console.nudge()

    def _warn(self, words: str) -> None:
        self._console.notify(words, severity="warning", markup=False)

    def _report_failure(self, what: str, why: ClientError, key: str = "") -> None:
        unknown = (isinstance(why, Unreachable) and why.sent) or (isinstance(why, Refused) and why.outcome_unknown)
        words = f"Outcome unknown, it may have happened: {why}" if unknown else f"{what}: {why}"
        if unknown and key:
            words += f". Its id is {key}."
        self._console.notify(words, severity="error", timeout=10, markup=False)
        self._console.nudge()


def _count_typed(number: int) -> str:
    return str(number) if number > TYPED_FROM else ""


def _named(tasks: Sequence[Task]) -> list[str]:
    """A line for each of the first five tasks."""
    lines = [
        f.printable(f"{f.GLYPHS.get(task.status, '?')} {task.id}  {task.type}  {task.status}") for task in tasks[:5]
    ]
    return lines + ([f"… and {len(tasks) - 5} more"] if len(tasks) > 5 else [])

"""The console: watches every node, reduces answers to one view, shows it on the screen in front."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

from textual import on, work
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.widgets import Input
from textual.worker import Worker

from tq_tui import format as f
from tq_tui import keys, task_view
from tq_tui.actions import OperatorActions
from tq_tui.client.api import Call, ClientError, ClusterClient
from tq_tui.client.models import Event, Task
from tq_tui.filters import TaskQuery
from tq_tui.messages import EventsReceived, Observed
from tq_tui.palette import ActionPalette
from tq_tui.requests import Requests
from tq_tui.screens.base import ConsoleScreen
from tq_tui.screens.events import EventsScreen
from tq_tui.screens.help import CallsScreen, HelpScreen
from tq_tui.screens.nodes import NodesScreen
from tq_tui.screens.overview import OverviewScreen
from tq_tui.screens.task_detail import TaskScreen
from tq_tui.screens.tasks import DeadScreen, TaskListScreen, TasksScreen
from tq_tui.state.cluster_view import Added, ClusterView, Dropped, Observation, Ticked, reduce
from tq_tui.state.discovery import leavers, newcomers
from tq_tui.state.event_log import EventLog
from tq_tui.styles import CSS
from tq_tui.themes import THEMES
from tq_tui.typeahead import TypeAhead
from tq_tui.watch import Watch

CALLS_MAX = 500
TICK_S = 1.0
EVENTS_EVERY_S = 0.1
"""Pause between two batches of events that the screen in front gets."""
PENDING_EVENTS_MAX = 20_000


class Console(TypeAhead):
    """The app.

    :param addresses: ``HOST:PORT`` each; others are learnt.
    :param live: False: a test feeds observations."""

    TITLE = "tq-tui"
    CSS = CSS
    COMMANDS: ClassVar[set[Any]] = {ActionPalette}
    MODES: ClassVar[dict[str, Any]] = {
        keys.OVERVIEW: OverviewScreen,
        keys.TASKS: TasksScreen,
        keys.TASK: TaskScreen,
        keys.NODES: NodesScreen,
        keys.DEAD: DeadScreen,
        keys.EVENTS: EventsScreen,
    }
    DEFAULT_MODE = keys.OVERVIEW
    ENABLE_COMMAND_PALETTE = True
    # One binding for a key: its action depends on the screen.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"press('{key}')", show=False)
        for key in dict.fromkeys(key for act in keys.ACTS for key in act.keys if key != "ctrl+p")
    ]

    def __init__(
        self,
        client: ClusterClient,
        addresses: Sequence[str],
        *,
        readonly: bool = False,
        clock: Callable[[], float] = time.time,
        live: bool = True,
    ) -> None:
        super().__init__()
        self.client, self.addresses, self.readonly, self.clock = client, tuple(addresses), readonly, clock
        self.live = live
        self.known = ClusterView()
        """The newest view; ``view`` is the one shown, which stays as it is while frozen."""
        self.view = ClusterView()
        self.frozen = False
        self.held_changes = 0
        self.events = EventLog()
        self.calls: deque[Call] = deque(maxlen=CALLS_MAX)
        self.requests = Requests(client, lambda: self.known)
        self.actions = OperatorActions(self, self.requests)
        self._watches: dict[str, tuple[Watch, Worker[None]]] = {}
        self._pending: list[Event] = []
        self._missed = False
        self._opened_from: str | None = None
        """The screen from which the task was opened, to which Esc returns."""
        self._last_task: str | None = None
        client.on_call = self.calls.append
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[0].name

    # --- watching ---
    def on_mount(self) -> None:
        now_s = self.clock()
        for address in self.addresses:
            self.observe(Added(address, now_s))
        if self.live:
            self.set_interval(TICK_S, lambda: self.observe(Ticked(self.clock())))
            self.set_interval(EVENTS_EVERY_S, self._deliver_events)
            self.call_after_refresh(self._begin)  # the first screen is drawn before any request

    def _begin(self) -> None:
        gc.freeze()
        gc.enable()
        for node in self.known.nodes:
            self._watch(node.address)

    def _watch(self, address: str) -> None:
        if address in self._watches or not self.live:
            return
        watch = Watch(
            self.client.at(address),
            address,
            on_observation=lambda seen: self.post_message(Observed(seen)),
            on_events=lambda events: self.post_message(EventsReceived(events)),
            clock=self.clock,
        )
        worker = self.run_worker(watch.run(), group="watch", name=f"watch {address}")
        self._watches[address] = (watch, worker)

    @on(Observed)
    def _observed(self, message: Observed) -> None:
        self.observe(message.observation)

    def observe(self, seen: Observation) -> None:
        """Reduce one observation into the view; watch new nodes, drop those that left; show it."""
        self.known = reduce(self.known, seen)
        for address in newcomers(self.known):
            self.known = reduce(self.known, Added(address, seen.at_s, given=False))
            self._watch(address)
        for address in leavers(self.known):
            self.known = reduce(self.known, Dropped(address, seen.at_s))
            _, worker = self._watches.pop(address, (None, None))
            if worker is not None:
                worker.cancel()
        self._show()

    def _show(self) -> None:
        if self.frozen:
            self.held_changes += 1
        else:
            self.view = self.known
        screen = self._in_front
        if screen is not None and screen is self.screen:
            screen.show_all(self.view)

    @on(EventsReceived)
    def _events_received(self, message: EventsReceived) -> None:
        self._pending += message.events
        self._missed |= not message.events
        del self._pending[:-PENDING_EVENTS_MAX]

    def _deliver_events(self) -> None:
        """Append the pending events to the log; pass them to the screen in front unless frozen."""
        events, self._pending = self._pending, []
        missed, self._missed = self._missed, False
        if missed:
            self.events.add([])
        if events:
            self.events.add(events)
        screen = self._in_front
        if screen is None or not (events or missed):
            return
        if self.frozen:
            self.held_changes += len(events)
            screen.show_all(self.view)
            return
        if missed:
            screen.events_received([])
        if events:
            screen.events_received(events)

    def nudge(self) -> None:
        """Poll all nodes now."""
        for watch, _ in self._watches.values():
            watch.nudge()

    # --- for screens and dialogs ---
    @property
    def _in_front(self) -> ConsoleScreen | None:
        """The screen of the present mode, below any dialog."""
        if not self._screen_stack:
            return None
        first = self._screen_stack[0]
        return first if isinstance(first, ConsoleScreen) else None

    @property
    def kind(self) -> str:
        return self._in_front.kind if self._in_front is not None else keys.OVERVIEW

    @property
    def badge(self) -> str:
        parts = ["read-only"] if self.readonly else []
        if self.frozen:
            parts.append(f"❄ frozen, {f.count(self.held_changes)} held")
        return " ".join(parts) and f" {' · '.join(parts)} "

    def chosen_tasks(self) -> list[Task]:
        return self._in_front.chosen_tasks() if self._in_front is not None else []

    def chosen_node(self) -> str | None:
        return self._in_front.chosen_node() if self._in_front is not None else None

    def listed(self) -> tuple[TaskQuery, str]:
        """The query of the list in front, and its filter as typed."""
        screen = cast("TaskListScreen", self._in_front)
        return screen.query_now, screen.typed

    def tasks_done(self, task_ids: Sequence[str]) -> None:
        if self._in_front is not None:
            self._in_front.tasks_done(task_ids)
        self.nudge()

    def progress(self, done: int, of: int) -> None:
        if of > 100 and done % 100 == 0 and done < of:
            self.notify(f"{done} of {of} …", timeout=1.0)

    def remember(self, task_id: str) -> None:
        """Make it the task that ``3`` shows until another is opened."""
        self._last_task = task_id

    def open_task(self, task_id: str) -> None:
        self._last_task = task_id
        before = self.kind
        self.go(keys.TASK)
        self._opened_from = before

    def copy(self, text: str, what: str) -> None:
        """Copy by OSC 52, which reaches the clipboard of the user's terminal, over ssh too."""
        self.copy_to_clipboard(text)
        self.notify(f"Copied {what}.", timeout=2.0)

    def notify(self, message: str, *, title: str = "", markup: bool = False, **options: Any) -> None:
        """Show a notification, without markup and made printable."""
        super().notify(f.printable_text(message), title=f.printable(title), markup=False, **options)

    # --- acts ---
    def _act_of(self, key: str) -> keys.Act | None:
        return next((act for act in keys.available(self.kind, readonly=self.readonly) if key in act.keys), None)

    def opens_dialog(self, key: str) -> bool:
        if len(self._screen_stack) != 1 or isinstance(self.focused, Input):
            return False
        act = self._act_of(key)
        return act is not None and act.changes

    def action_press(self, key: str) -> None:
        act = self._act_of(key)
        if act is not None:
            self.action_act(act.id)

    def action_act(self, name: str) -> None:
        """Run the action ``name`` of ``keys.ACTS``: the screen's method, if any, else our own."""
        act = keys.BY_ID[name]
        if act not in keys.available(self.kind, readonly=self.readonly):
            return
        if act.changes:
            self._change(name)
            return
        if name.startswith("screen-"):
            self.go(name.removeprefix("screen-"))
            return
        method = "act_" + name.replace("-", "_")
        own = getattr(self._in_front, method, None)
        if name == "back":
            self._back(own)
        else:
            (own or getattr(self, method))()

    @work(exclusive=False, group="acts")
    async def _change(self, name: str) -> None:
        try:
            await getattr(self.actions, name.replace("-", "_"))()
        finally:
            self.release_keys(keep=True)

    def go(self, kind: str) -> None:
        """Show the screen ``kind``."""
        self._opened_from = None
        self.switch_mode(kind)
        if kind == keys.TASK and self._last_task is not None:
            self.call_after_refresh(self._open_last)

    def _open_last(self) -> None:
        screen = self._in_front
        if isinstance(screen, TaskScreen) and self._last_task is not None:
            try:
                screen.open(self._last_task)
            except NoMatches:
                self.call_after_refresh(self._open_last)

    def _back(self, own: Callable[[], bool] | None) -> None:
        """Close what is open: a line, a filter, marks, or a task opened from a list."""
        if own is not None and own():
            return
        if self.kind == keys.TASK and self._opened_from is not None:
            before, self._opened_from = self._opened_from, None
            self.switch_mode(before)

    def act_help(self) -> None:
        self.push_screen(HelpScreen(self.kind, readonly=self.readonly))

    def act_quit(self) -> None:
        self.exit(0)

    def act_palette(self) -> None:
        self.action_command_palette()

    def act_calls(self) -> None:
        self.push_screen(CallsScreen(list(self.calls), self.copy))

    def act_freeze(self) -> None:
        self.frozen = not self.frozen
        self.held_changes = 0
        self._show()
        if not self.frozen and self._in_front is not None:
            self._in_front.events_received([])

    def act_refresh(self) -> None:
        self.nudge()
        if self._in_front is not None:
            self._in_front.events_received([])

    def act_theme(self) -> None:
        names = [theme.name for theme in THEMES]
        place = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(place + 1) % len(names)]
        self.notify(f"Theme: {self.theme}", timeout=2.0)

    def act_next(self, step: int = 1) -> None:
        order = [name for _, name, _ in keys.SCREENS]
        self.go(order[(order.index(self.kind) + step) % len(order)])

    def act_previous(self) -> None:
        self.act_next(-1)

    def act_why(self) -> None:
        for task in self.chosen_tasks()[:1]:
            self.notify(task_view.why(task, self.view), title=task.id, timeout=10.0, markup=False)

    def act_copy(self) -> None:
        chosen = [task.id for task in self.chosen_tasks()]
        if node := self.chosen_node():
            chosen = [node]
        if chosen:
            self.copy("\n".join(chosen), chosen[0] if len(chosen) == 1 else f"{len(chosen)} ids")

    @work(group="copy")
    async def act_copy_json(self) -> None:
        """Copy the chosen task as JSON, read whole: a list or an event may lack parts."""
        for chosen in self.chosen_tasks()[:1]:
            try:
                task = await self.requests.ask(lambda client, task_id=chosen.id: client.task(task_id))  # type: ignore[misc]
            except ClientError as why:
                self.notify(f"{chosen.id} can't be read: {why}", severity="error", markup=False)
            else:
                self.copy(f.task_json(task), "the task as JSON")

    def act_copy_curl(self) -> None:
        addresses = self.requests.addresses()
        for task in self.chosen_tasks()[:1]:
            if addresses:
                self.copy(task_view.status_curl(addresses[0], task.id), "a curl line")

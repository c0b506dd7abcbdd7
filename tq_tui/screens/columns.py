"""PURE. Columns of the tables, the most important ones with the lowest rank."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from tq_tui import format as f
from tq_tui.charts import node_role, node_word, uptime
from tq_tui.client.api import Call
from tq_tui.client.models import Event, Task
from tq_tui.state.cluster_view import ClusterView, NodeView
from tq_tui.state.health import node_note, node_trouble
from tq_tui.widgets.rows import Column

Now = Callable[[], float]


def task_columns(now: Now) -> list[Column[Task]]:
    def state(task: Task) -> tuple[str, str]:
        return f"{f.GLYPHS.get(task.status, '?')} {task.status}", f.STYLES.get(task.status, "")

    def ran(task: Task) -> tuple[str, str]:
        if task.started_at is None:
            return "-", "$foreground-muted"
        end_s = task.completed_at.timestamp() if task.completed_at else now()
        return f.duration(end_s - task.started_at.timestamp()), ""

    def due(task: Task) -> tuple[str, str]:
        waits = task.run_at is not None and task.status == "scheduled"
        return (f.age(task.run_at, now()) if waits else "-"), "$foreground-muted"

    def told(task: Task) -> tuple[str, str]:
        if task.status == "failed" and task.error is not None:
            return f"{task.error.type}: {task.error.message}", "$error"
        if task.status == "completed":
            words = task.result if isinstance(task.result, str) else f.compact_json(task.result)
            return words, "$foreground-muted"
        if task.status == "processing" and task.progress is not None:
            return f"{task.progress.fraction:.0%} {task.progress.note or ''}", ""
        if task.status == "scheduled":
            return f"due {f.age(task.run_at, now())}", "$foreground-muted"
        return f.compact_json(task.payload), "$foreground-muted"

    return [
        Column("id", "task", 14, lambda task: (task.id, ""), rank=0, grow=3, middle=True, width_max=42),
        Column("type", "type", 10, lambda task: (task.type, "bold"), rank=2, grow=1, width_max=24),
        Column("status", "state", 12, state, rank=1),
        Column("priority", "pri", 3, lambda task: (f"{task.priority:g}", ""), rank=7, right=True),
        Column("queue", "queue", 9, lambda task: (task.queue, ""), rank=6, grow=1, width_max=20),
        Column("attempt", "try", 5, lambda task: (f"{task.attempt}/{task.max_attempts}", ""), rank=5, right=True),
        Column("created_at", "age", 6, lambda task: (f.age(task.created_at, now()), ""), rank=3, right=True),
        Column("ran", "ran", 6, ran, rank=8, right=True),
        Column("node", "node", 8, lambda task: (task.worker or task.node or "-", ""), rank=4, grow=1, width_max=16),
        Column("run_at", "due", 8, due, rank=10, right=True),
        Column("told", "result, error or payload", 26, told, rank=9, grow=4),
    ]


def dead_columns(now: Now) -> list[Column[Task]]:
    def error(task: Task) -> tuple[str, str]:
        return (f"{task.error.type}: {task.error.message}" if task.error is not None else "-"), "$error"

    return [
        Column("id", "task", 14, lambda task: (task.id, ""), rank=0, grow=2, middle=True, width_max=42),
        Column("type", "type", 10, lambda task: (task.type, "bold"), rank=2, grow=1, width_max=24),
        Column("told", "error", 20, error, rank=1, grow=4),
        Column("attempt", "try", 5, lambda task: (f"{task.attempt}/{task.max_attempts}", ""), rank=4, right=True),
        Column("ended", "ended", 6, lambda task: (f.age(task.completed_at, now()), ""), rank=3, right=True),
        Column("created_at", "age", 6, lambda task: (f.age(task.created_at, now()), ""), rank=6, right=True),
        Column("priority", "pri", 3, lambda task: (f"{task.priority:g}", ""), rank=8, right=True),
        Column("queue", "queue", 9, lambda task: (task.queue, ""), rank=7, grow=1, width_max=20),
        Column("node", "node", 8, lambda task: (task.worker or task.node or "-", ""), rank=5, grow=1, width_max=16),
    ]


def node_columns(view: Callable[[], ClusterView]) -> list[Column[NodeView]]:
    def seen(node: NodeView) -> ClusterView:
        return view()

    def status(node: NodeView) -> tuple[str, str]:
        word = node_word(view(), node)
        return f"{f.NODE_GLYPHS.get(word, '?')} {word}", f.NODE_STYLES.get(word, "")

    def role(node: NodeView) -> tuple[str, str]:
        word = node_role(view(), node)
        return ("★ leader", "bold $accent") if word == "leader" else (word or "-", "")

    def parts(node: NodeView) -> tuple[str, str]:
        led, held = view().held(node.name)
        return f"{led}/{held}", ""

    def lag(node: NodeView) -> tuple[str, str]:
        behind, out = view().lag(node.name)
        if not node.is_up and not out:
            return "-", ""
        if out:
            return f"{out} out", "$error"
        return (f.count(behind), "$warning") if behind else ("0", "$foreground-muted")

    def slots(node: NodeView) -> tuple[str, str]:
        known = node.metrics if node.is_up else None
        return (f"{known.busy}/{known.slots}" if known is not None else "-"), ""

    def memory(node: NodeView) -> tuple[str, str]:
        known = node.metrics if node.is_up else None
        return (f.size(known.memory_bytes) if known is not None else "-"), ""

    def version(node: NodeView) -> tuple[str, str]:
        words = node.metrics.version if node.metrics is not None else "-"
        return (f"≠ {words}", "$warning") if len(view().versions) > 1 else (words, "")

    def last(node: NodeView) -> tuple[str, str]:
        now_s = view().now_s
        if node.is_up:
            return f.duration(node.latency_s), "$foreground-muted"
        return f.duration(now_s - node.since_s), "$error"

    def trouble(node: NodeView) -> tuple[str, str]:
        words = node_trouble(view(), node) or node_note(node)
        return words, "$warning" if node.is_up else "$error"

    return [
        Column("name", "node", 8, lambda node: (node.label, "bold"), rank=0, grow=1, width_max=24),
        Column("status", "status", 10, status, rank=1),
        Column("role", "role", 8, role, rank=2),
        Column("parts", "led/held", 8, parts, rank=3, right=True),
        Column("lag", "lag", 6, lag, rank=4, right=True),
        Column("slots", "slots", 6, slots, rank=5, right=True),
        Column("last", "answer", 6, last, rank=6, right=True),
        Column("uptime", "up", 6, lambda node: (uptime(seen(node), node), ""), rank=7, right=True),
        Column("cpu", "cpu", 5, lambda node: (f"{node.cpu:.0%}" if node.is_up else "-", ""), rank=8, right=True),
        Column("memory", "mem", 6, memory, rank=9, right=True),
        Column("version", "version", 8, version, rank=12, grow=1, width_max=16),
        Column(
            "address", "address", 16, lambda node: (node.address, "$foreground-muted"), rank=10, grow=1, width_max=30
        ),
        Column("trouble", "", 12, trouble, rank=11, grow=3),
    ]


def event_columns() -> list[Column[Event]]:
    def to(event: Event) -> tuple[str, str]:
        return f"{f.GLYPHS.get(event.to, '?')} {event.to}", f.STYLES.get(event.to, "")

    return [
        Column("at", "time (UTC)", 12, lambda event: (event.at[11:23], "$foreground-muted"), rank=1),
        Column("id", "task", 16, lambda event: (event.task_id, ""), rank=0, grow=3, middle=True, width_max=42),
        Column("type", "type", 10, lambda event: (event.type, "bold"), rank=3, grow=1, width_max=24),
        Column("from", "from", 10, lambda event: (event.before or "(new)", "$foreground-muted"), rank=5),
        Column("to", "to", 12, to, rank=2),
        Column("attempt", "try", 3, lambda event: (str(event.attempt), ""), rank=6, right=True),
        Column("node", "node", 8, lambda event: (event.node or "-", ""), rank=4, grow=1, width_max=16),
        Column("queue", "queue", 9, lambda event: (event.queue, ""), rank=7, grow=1, width_max=20),
        Column("partition", "part", 4, lambda event: (str(event.partition), "$foreground-muted"), rank=8, right=True),
    ]


def call_columns() -> list[Column[Call]]:
    def answer(call: Call) -> tuple[str, str]:
        if call.status is None:
            return "none", "$error"
        return str(call.status), "$success" if call.status < 300 else "$error"

    def at(call: Call) -> tuple[str, str]:
        return datetime.fromtimestamp(call.at_s, UTC).strftime("%H:%M:%S"), "$foreground-muted"

    return [
        Column("at", "time", 8, at, rank=3),
        Column("answer", "ans", 4, answer, rank=1, right=True),
        Column("took", "took", 6, lambda call: (f.duration(call.duration_s), "$foreground-muted"), rank=2, right=True),
        Column("curl", "call", 30, lambda call: (call.curl, ""), rank=0, grow=1),
    ]

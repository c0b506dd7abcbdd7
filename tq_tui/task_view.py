"""PURE. One task in words: why it waits, what happened to it, which call shows it."""

from __future__ import annotations

import textwrap

from tq_tui import format as f
from tq_tui.charts import Line, filled
from tq_tui.client.api import quoted
from tq_tui.client.models import Task, WaitsFor
from tq_tui.state.cluster_view import ClusterView


def why(task: Task, view: ClusterView) -> str:
    """One sentence: what the task waits for, or why it ended."""
    now_s = view.now_s
    match task.status:
        case "scheduled":
            return _why_scheduled(task, now_s)
        case "pending":
            return _why_pending(task, view)
        case "processing":
            ran_s = now_s - task.started_at.timestamp() if task.started_at else 0.0
            left = f", at most {f.duration(task.timeout)} are allowed" if task.timeout else ""
            return f"Runs on {task.worker or task.node} for {f.duration(ran_s)}{left} (attempt {task.attempt})."
        case "failed":
            error = task.error
            if error is not None and error.type == "attempts_lost":
                return "Given up: three attempts were lost with their nodes. Retry (r) begins anew."
            if error is not None and error.type == "no_handler":
                return f"No node has a handler for {task.type!r}. Retry (r) once one has."
            tries = f.plural(task.attempt, "attempt")
            reason = f" {error.type}: {error.message}." if error is not None else ""
            return f"Failed for good after {tries}.{reason} Retry (r) begins anew."
        case "cancelled":
            return "Somebody cancelled it. Retry (r) sends it back."
        case _:
            return f"Completed in {f.plural(task.attempt, 'attempt')}."


def _why_scheduled(task: Task, now_s: float) -> str:
    due = f"due {f.age(task.run_at, now_s)}" if task.run_at and task.run_at.timestamp() > now_s else "due now"
    last = task.attempts[-1] if task.attempts else None
    if last is not None and last.outcome in ("failed", "lost") and task.attempt:
        error = f": {last.error.message}" if last.error is not None else ""
        return f"Attempt {last.attempt} {last.outcome}{error}; the next one is {due} (back-off)."
    return f"Was submitted for later: {due}, at {f.moment(task.run_at)}."


def _until(reason: WaitsFor | None) -> str:
    return "" if reason is None or reason.until is None else f" until {f.moment(reason.until)}"


def _why_pending(task: Task, view: ClusterView) -> str:
    reasons = {reason.kind: reason for reason in task.waiting_for}
    if task.queue in view.paused or "queue_paused" in reasons:
        return f"Queue {task.queue} is paused{_until(reasons.get('queue_paused'))}; P lets it go on."
    if "type_paused" in reasons:
        return f"Type {task.type!r} is paused{_until(reasons['type_paused'])}."
    if "copies" in reasons:
        return f"Too few copies of its partition {task.partition} are in sync to begin it."
    entry = next((entry for entry in view.partitions if entry.partition == task.partition), None)
    if entry is not None and (entry.primary is None or entry.state != "active"):
        return f"Its partition {task.partition} is {entry.state}: no node leads it just now."
    if "no_handler" in reasons:
        return f"No node that is up has a handler for {task.type!r}: it runs once one comes."
    node = view.named(task.node or "")
    if node is not None and not node.is_up:
        return f"Its node {node.name} does not answer; another one takes its partitions over."
    if node is not None and view.status_of(node) == "draining":
        return f"Its node {node.name} is being drained; the task moves with partition {task.partition}."
    if node is not None and node.metrics is not None and not node.metrics.idle:
        busy = node.metrics.busy
        return f"All {busy} slots of {node.name} are busy, and others of priority {task.priority:g} or higher were due first."
    return "It is due, and is claimed as soon as a slot is free."


def facts(task: Task, view: ClusterView, width: int) -> list[Line]:
    """The head of the task's screen: state, what it waits for, facts."""
    now_s = view.now_s
    style = f.STYLES.get(task.status, "")
    head: Line = [
        (f"{f.GLYPHS.get(task.status, '?')} {task.status}", f"bold {style}"),
        (f"  {f.printable(task.type)}", "bold"),
        (f"  attempt {task.attempt}/{task.max_attempts}  priority {task.priority:g}", ""),
    ]
    pairs = [
        ("id", task.id),
        ("created", f"{f.moment(task.created_at)} ({f.age(task.created_at, now_s)} ago)"),
        ("due", f.moment(task.run_at)),
        ("started", f.moment(task.started_at)),
        ("ended", f"{f.moment(task.completed_at)}{_took(task)}"),
        ("queue", task.queue),
        ("primary", f"{task.node or 'nobody'}, partition {task.partition}, version {task.version}"),
        ("runs on" if task.status == "processing" else "ran on", task.worker or "-"),
    ]
    if task.timeout:
        pairs.append(("timeout", f"{f.duration(task.timeout)} for an attempt"))
    if task.tags:
        pairs.append(("tags", ", ".join(f"{name}={value}" for name, value in task.tags.items())))
    reason: list[Line] = [
        [("→ " if not place else "  ", "$accent"), (text, "bold")]
        for place, text in enumerate(textwrap.wrap(f.printable(why(task, view)), max(10, width - 2)))
    ]
    lines: list[Line] = [filled(head, width), *reason, [("", "")]]
    columns = 2 if width >= 110 else 1
    each = width // columns
    cells: list[Line] = [
        [(f.fit(name, 9), "$foreground-muted"), (f.fit(value, each - 10), "")] for name, value in pairs
    ]
    if columns == 1:
        return lines + cells
    half = -(-len(cells) // 2)
    right = cells[half:] + [[] for _ in range(2 * half - len(cells))]
    return lines + [[*left, (" ", ""), *other] for left, other in zip(cells[:half], right, strict=True)]


def _took(task: Task) -> str:
    if task.started_at is None or task.completed_at is None:
        return ""
    return f" (ran {f.duration((task.completed_at - task.started_at).total_seconds())})"


def attempts(task: Task, width: int) -> list[Line]:
    """Each attempt: outcome, node, start and duration, with the error below."""
    lines: list[Line] = []
    for one in task.attempts:
        took = (one.ended_at - one.started_at).total_seconds() if one.ended_at and one.started_at else None
        style = f.STYLES.get(one.outcome, "")
        lines.append(
            [
                (f"{f.GLYPHS.get(one.outcome, '?')} {one.attempt} ", style),
                (f.fit(one.outcome, 10), style),
                (f.fit(one.node or "-", 12), ""),
                (f"{f.clock_time(one.started_at)}  ", "$foreground-muted"),
                (f.fit(f.duration(took) if took is not None else "-", 6, right=True), ""),
            ]
        )
        if one.error is not None:
            error = f.fit(f"{one.error.type}: {one.error.message}", width - 4).rstrip()
            lines.append([("    ", ""), (error, "$error")])
    if task.status == "processing":
        lines.append(
            [
                (f"{f.GLYPHS['processing']} {task.attempt} ", f.STYLES["processing"]),
                (f.fit("running", 10), f.STYLES["processing"]),
                (f.fit(task.worker or task.node or "-", 12), ""),
                (f.clock_time(task.started_at), "$foreground-muted"),
            ]
        )
    return lines or [[("none yet", "$foreground-muted")]]


def progress(task: Task, width: int) -> list[Line]:
    if task.progress is None:
        return [[("the handler has told none", "$foreground-muted")]]
    room = max(8, min(40, width - 30))
    fraction = min(1.0, max(0.0, task.progress.fraction))
    bar = f.meter(round(fraction * 1000), 1000, room)
    return [[(bar, "$primary"), (f" {fraction:.0%}  {f.printable(task.progress.note or '')}", "")]]


def log(task: Task) -> list[Line]:
    lines: list[Line] = []
    if task.log_dropped:
        lines.append([(f"… {f.plural(task.log_dropped, 'earlier line')} not kept", "$foreground-muted")])
    lines += [[(f"{f.clock_time(one.at)}  ", "$foreground-muted"), (f.printable(one.line), "")] for one in task.log]
    return lines or [[("nothing was logged", "$foreground-muted")]]


def status_curl(address: str, task_id: str) -> str:
    base = address if "://" in address else f"http://{address}"
    return f"curl {quoted(f'{base}/tasks/status?id={task_id}')}"

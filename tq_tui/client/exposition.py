"""PURE. The few numbers that the console wants out of Prometheus's text format."""

from __future__ import annotations

import re
from collections import defaultdict

from tq_tui.client.models import Metrics

_LINE = re.compile(r"([a-z_]+)(?:\{(.*)\})? ([^ ]+)$")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
_WANTED = (
    "taskqueue_workers",
    "taskqueue_tasks_submitted_total",
    "taskqueue_tasks_finished_total",
    "taskqueue_queue_",
    "taskqueue_build_info",
    "taskqueue_store_bytes",
    "taskqueue_disk_free_bytes",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
)


def read_metrics(text: str) -> Metrics:
    """What is missing is zero."""
    sums: defaultdict[str, float] = defaultdict(float)
    oldest: dict[str, float] = {}
    paused: list[str] = []
    version = ""
    for line in text.split("\n"):
        # Nearly all lines are buckets of histograms: they are not looked at any closer.
        if not line.startswith(_WANTED) or (match := _LINE.match(line)) is None:
            continue
        name, labels, value = match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])
        queue = re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), labels.get("queue", ""))
        if name == "taskqueue_queue_oldest_ready_age_seconds":
            oldest[queue] = value
        elif name == "taskqueue_queue_paused":
            if value:
                paused.append(queue)
        elif name == "taskqueue_build_info":
            version = labels.get("version", "")
        else:
            kind = labels.get("state") or labels.get("outcome") or ""
            sums[f"{name}/{kind}"] += value
    finished = "taskqueue_tasks_finished_total/"
    return Metrics(
        busy=int(sums["taskqueue_workers/busy"]),
        idle=int(sums["taskqueue_workers/idle"]),
        started_at_s=sums["process_start_time_seconds/"],
        submitted=int(sums["taskqueue_tasks_submitted_total/"]),
        completed=int(sums[finished + "completed"]),
        failed=int(sums[finished + "failed"]),
        cancelled=int(sums[finished + "cancelled"]),
        oldest_age_s=oldest,
        paused=tuple(sorted(paused)),
        memory_bytes=int(sums["process_resident_memory_bytes/"]),
        cpu_s=sums["process_cpu_seconds_total/"],
        store_bytes=int(sums["taskqueue_store_bytes/"]),
        disk_free_bytes=int(sums["taskqueue_disk_free_bytes/"]),
        version=version,
    )

"""Loaded by Schemathesis (``SCHEMATHESIS_HOOKS``): what makes a run short and its expectations true."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

WAIT_S_MAX = 0.05
LATE_S = 4_102_444_800


def _is_time(value: object) -> bool:
    text = str(value)
    return re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].*|[0-9.]+(e[+-]?[0-9]+)?", text) is not None


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    query = case.query
    if case.path in ("/tasks/pause", "/tasks/resume"):
        # No schema can say that it is one of these two, nor that a time must lie ahead.
        query = case.query = dict(query or {})
        if "type" not in query:
            query.setdefault("queue", "mail")
        elif "queue" in query:
            del query["type"]
        if _is_time(query.get("until", "")):
            query["until"] = LATE_S
    if not query:
        return
    if re.fullmatch(r"[1-9][0-9.]*", str(query.get("wait", ""))) and float(query["wait"]) <= 60:
        query["wait"] = WAIT_S_MAX
    if isinstance(query.get("cursor"), str):
        # No schema can say which strings an earlier page has given out.
        query["cursor"] = ""

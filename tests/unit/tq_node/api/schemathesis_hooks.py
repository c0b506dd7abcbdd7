"""Loaded by Schemathesis (``SCHEMATHESIS_HOOKS``): what makes a run short and its expectations true."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

WAIT_S_MAX = 0.05


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    query = case.query
    if not query:
        return
    if re.fullmatch(r"[1-9][0-9.]*", str(query.get("wait", ""))) and float(query["wait"]) <= 60:
        query["wait"] = WAIT_S_MAX
    if isinstance(query.get("cursor"), str):
        # No schema can say which strings an earlier page has given out.
        query["cursor"] = ""

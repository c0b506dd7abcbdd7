"""Fields of payloads and results whose values lists don't show, by name (``--redact``): pure.

A list shows many tasks to whoever may read, on screens and in exports. What a single task carries
is still told whole to who asks for it by its id, and to its handler."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tq_node import limits
from tq_node.types import TaskRow

HIDDEN = "[redacted]"
"""Stands in place of a value."""
_HIDDEN_JSON = msgspec.json.encode(HIDDEN)
_literals = re.compile(r"[a-z0-9_-]+").findall
_NAMES_KNOWN_MAX = 4_096


class FieldRules:
    """Names, or patterns with ``*`` and ``?``, in either case. None at all: everything is shown."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = patterns
        match = re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE).match
        self._is_hidden = lru_cache(_NAMES_KNOWN_MAX)(lambda name: match(name) is not None)
        self._needles = [_needle(pattern) for pattern in patterns]

    def shown(self, row: TaskRow) -> TaskRow:
        """The task with the values of such fields replaced, in its payload and its result."""
        if not self._patterns:
            return row
        payload, result = row.spec.payload, row.result
        shown_payload = self._hide(payload)
        shown_result = None if result is None else self._hide(result)
        if shown_payload is payload and shown_result is result:
            return row
        spec = msgspec.structs.replace(row.spec, payload=shown_payload)
        return msgspec.structs.replace(row, spec=spec, result=shown_result)

    def _hide(self, value: bytes) -> bytes:
        """The JSON, the same object if nothing in it is hidden."""
        if not self._may_name(value):
            return value
        if len(value) > limits.REDACT_BYTES_MAX:
            return _HIDDEN_JSON
        try:
            return msgspec.json.encode(self._without(msgspec.json.decode(value)))
        except (msgspec.MsgspecError, RecursionError):
            return _HIDDEN_JSON  # of an old store, nested too deep: nobody knows what is in it

    def _may_name(self, value: bytes) -> bool:
        """Whether a field may be hidden: a quick look, for most lists name none."""
        if not value.isascii() or b"\\u" in value:
            return True  # letters that other letters stand for
        low = value.lower()
        return any(needle in low for needle in self._needles)

    def _without(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: HIDDEN if self._is_hidden(name) else self._without(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self._without(part) for part in value]
        return value


def _needle(pattern: str) -> bytes:
    """What JSON has that has such a field; its longest part without wildcards, in lower case."""
    if "[" in pattern or not pattern.isascii():
        return b""
    return max(_literals(pattern.lower()), key=len, default="").encode("ascii")

"""PURE. What is typed into the submit form, checked as it is typed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tq_tui.client.shallow import is_deep

DEPTH_MAX = 200
"""Levels of lists and objects in a payload; nodes refuse more."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DELAY = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_LOOKS_LIKE_JSON = ("{", "[", '"', "-")
DELAY_S_MAX = 315_360_000
TYPE_MAX = 100
NESTING_MAX = 200


class BadField(ValueError):
    """A field of the form can't be read; the text says what the field takes."""


@dataclass(frozen=True, slots=True)
class Payload:
    """``said``: what it was taken for. ``error``: why it can't be sent; then there is no value."""

    value: Any = None
    said: str = ""
    error: str = ""


def read_payload(text: str) -> Payload:
    """JSON; or, where it does not look like JSON, the text itself, as of ``user@example.com``."""
    text = text.strip()
    if not text:
        return Payload(None, "null")
    try:
        value = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as why:
        if text.startswith(_LOOKS_LIKE_JSON) or text[0].isdigit():
            return Payload(error=f"line {why.lineno}, column {why.colno}: {why.msg}")
        return Payload(text, "text, sent as a JSON string")
    except (ValueError, RecursionError) as why:
        return Payload(error=str(why) if isinstance(why, ValueError) else "nested too deep")
    if is_deep(text.encode("utf-8", "replace"), DEPTH_MAX):
        return Payload(error=f"nested deeper than {DEPTH_MAX} levels")
    return Payload(value, _described(value))


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _described(value: Any) -> str:
    match value:
        case dict():
            return f"JSON object, {len(value)} {'field' if len(value) == 1 else 'fields'}"
        case list():
            return f"JSON array, {len(value)} {'item' if len(value) == 1 else 'items'}"
        case bool() | None:
            return f"JSON {json.dumps(value)}"
        case str():
            return "JSON string"
        case _:
            return "JSON number"


def read_type(text: str) -> str:
    text = text.strip()
    if not 1 <= len(text) <= TYPE_MAX:
        raise BadField("1 to 100 characters")
    return text


def read_number(text: str, lowest: int, highest: int) -> int | None:
    """None where nothing was typed; raises ``BadField`` outside the bounds."""
    text = text.strip()
    if not text:
        return None
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise BadField(f"{lowest} to {highest}")
    return int(text)


def read_delay(text: str) -> float | None:
    """Seconds of ``90``, ``1.5s``, ``5m``, ``2h``, ``1d``; raises ``BadField`` for others."""
    text = text.strip().lower()
    if not text:
        return None
    match = _DELAY.fullmatch(text)
    if match is None:
        raise BadField("such as 90, 1.5s, 5m, 2h or 1d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > DELAY_S_MAX:
        raise BadField("ten years at most")
    return seconds

"""How the text of one option becomes a value: times, sizes, whole numbers, names, paths.

Each parser raises ValueError with the end of a sentence that the value begins: "is not 1"."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from tq_node import limits

T = TypeVar("T")


def parse_node_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text, re.ASCII):
        raise ValueError("is not a node name: 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit")
    return text


def parse_module(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("is not a dotted module name")
    return text


def parse_variable(text: str) -> str:
    """The name of an environment variable, or a pattern."""
    if not re.fullmatch(r"[A-Za-z_*?][A-Za-z0-9_*?]*", text, re.ASCII):
        raise ValueError("is not the name of a variable, nor a pattern such as AWS_*")
    if any(fnmatchcase(text, pattern) for pattern in limits.NODE_VARIABLES):
        raise ValueError("is the node's own: worker processes never get it")
    return text


def parse_field_pattern(text: str) -> str:
    """The name of a field of payloads, or a pattern."""
    if not text.isprintable() or len(text) > limits.REDACT_CHARS_MAX:
        raise ValueError(
            f"is not the name of a field, nor a pattern such as *token*, of up to {limits.REDACT_CHARS_MAX}"
        )
    return text


def parse_flag(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("is neither true nor false")
    return text.lower() in ("1", "true", "yes", "on")


def parse_voters(text: str) -> int:
    if text not in ("1", "3", "5"):
        raise ValueError("is not 1, 3 or 5")
    return int(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(text)

    return parse


_NUMBER = r"\d{1,18}(?:\.\d{1,18})?"
"""Bound of a number's digits: no time and no size is longer."""
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d|w))+|{_NUMBER}", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "": 1_000}


def unless(word: str, parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """A parser of ``word``, which gives None, and of what ``parse`` takes."""
    return lambda text: None if text == word else parse(text)


def duration(low_s: float, high_s: float) -> Callable[[str], int]:
    """``24h``, ``1h30m``, ``500ms``; a bare number is seconds. Gives milliseconds."""

    def parse(text: str) -> int:
        if not _DURATION.fullmatch(text):
            raise ValueError("is not a time such as 24h, 90m, 30s, 500ms or a number of seconds")
        parts = re.findall(r"([\d.]+)(ms|[smhdw]?)", text)
        ms = round(sum(float(number) * _UNIT_MS[unit] for number, unit in parts))
        if not low_s * 1_000 <= ms <= high_s * 1_000:
            raise ValueError(f"is not between {low_s:g} and {high_s:g} seconds")
        return ms

    return parse


_SIZE = re.compile(rf"({_NUMBER}) ?([a-z]*)", re.ASCII)
_UNIT_BYTES = {"": 1, "b": 1} | {
    f"{letter}{rest}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for rest, base in (("ib", 1024), ("b", 1000))
}


def size(low: int, high: int) -> Callable[[str], int]:
    """``16MiB``, ``500kB``; a bare number is bytes."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text.lower())
        if match is None or match[2] not in _UNIT_BYTES:
            raise ValueError("is not a size such as 16MiB, 500kB or a number of bytes")
        count = int(float(match[1]) * _UNIT_BYTES[match[2]])
        if not low <= count <= high:
            raise ValueError(f"is not between {low:,} and {high:,} bytes".replace(",", " "))
        return count

    return parse


def rate(low: int, high: int) -> Callable[[str], int]:
    """A size, each second; 0 is no bound."""
    bounded = size(low, high)

    def parse(text: str) -> int:
        try:
            return size(0, 0)(text)
        except ValueError:
            pass
        try:
            return bounded(text)
        except ValueError as why:
            raise ValueError(f"{why}, nor 0 for no bound") from None

    return parse


def path_from(working_dir: Path) -> Callable[[str], Path]:
    """An absolute path; ``~`` is the home directory."""

    def parse(text: str) -> Path:
        if "\0" in text:
            raise ValueError("is not a path")
        try:
            return Path(os.path.abspath(working_dir / Path(text).expanduser()))
        except RuntimeError:
            raise ValueError("names nobody's home directory") from None
        except OSError as why:
            raise ValueError(f"is not a path: {why.strerror}") from None

    return parse


def readable_file(working_dir: Path) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = path_from(working_dir)(text)
        try:
            is_readable = path.is_file() and os.access(path, os.R_OK)
        except OSError as why:
            raise ValueError(f"is not a file that can be read: {why.strerror}") from None
        if not is_readable:
            raise ValueError("is not a file that can be read")
        return path

    return parse


def unusable(data_dir: Path) -> str:
    """Why the directory can't be used or made; empty: it can. Touches nothing."""
    for path in (data_dir, *data_dir.parents):
        try:
            if not path.exists():
                continue
            if not path.is_dir():
                return f"can't be used: {str(path)!r} is not a directory"
            return "" if os.access(path, os.W_OK | os.X_OK) else f"can't be written: no permission for {str(path)!r}"
        except OSError as why:
            return f"can't be used: {why.strerror}"
    return ""

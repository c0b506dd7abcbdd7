"""Cuts the body of a batch into its items, undecoded, in slices: the sender chooses how long it is.

A window of the body is cut where a brace is followed by a comma. The decoder tells whether an item
ends there, and not a part of a string or of an inner value: JSON cut anywhere else can't be closed
by one bracket. If no cut is near, one item is decoded alone to find its end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

from tq_node import limits
from tq_node.api.json_pointer import refusal
from tq_node.errors import BodyTooLarge, Malformed
from tq_node.slices import Pace


class LooseBatch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The body of a batch, its items undecoded."""

    tasks: list[msgspec.Raw]


_decode = msgspec.json.Decoder(LooseBatch).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_begins = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"tasks"[ \t\r\n]*:[ \t\r\n]*\[').match
_cut = re.compile(rb"\}[ \t\r\n]*,").match
_space = re.compile(rb"[ \t\r\n]*").match
_tokens = re.compile(rb'\\.|["\[\]{}]', re.DOTALL).finditer
_find_end = json.JSONDecoder().raw_decode
_CUTS_TRIED = 4
_NEAR_BYTES = 4_096
_LOOK_BYTES = 64
_TOKENS_EACH = 1_000
_SKIP_BYTES = 65_536
_BACKSLASH, _QUOTE = b'\\"'
_SPACE = b" \t\r\n"


def _too_many(count: str) -> BodyTooLarge:
    return BodyTooLarge(f"{count} tasks in one batch; at most {limits.BATCH_TASKS_MAX} are allowed")


class BatchCutter:
    """Cuts bodies of both forms; items over ``item_bytes_max`` to a byte more, to be refused."""

    def __init__(self, item_bytes_max: int) -> None:
        self._item_bytes_max = item_bytes_max

    async def of_array(self, body: bytes, pace: Pace) -> list[msgspec.Raw]:
        """The items of ``{"tasks":[…]}``.

        :raises Malformed, MissingField, UnknownField, InvalidField: the body has another form.
        :raises BodyTooLarge: more than ``limits.BATCH_TASKS_MAX``."""
        if len(body) <= limits.ITEMS_WINDOW_BYTES:
            return self._check_count(_decode_items_of(body))
        begin = _begins(body)
        if begin is None:
            raise Malformed('the body must be a JSON object {"tasks":[…]}')
        items: list[msgspec.Raw] = []
        at = begin.end()
        while len(body) - at > limits.ITEMS_WINDOW_BYTES:
            if pace.is_over():
                await pace.turn()
            found, behind = self._cut_window(body, at) or await self._cut_one(body, at, pace)
            if not found:
                break
            items += found
            self._check_count(items)
            at = behind
        if pace.is_over():
            await pace.turn()
        items += _decode_items_of(b'{"tasks":[' + body[at:])
        return self._check_count(items)

    async def of_lines(self, body: bytes, pace: Pace) -> list[msgspec.Raw]:
        """Items of JSON lines, no empty ones; raises ``BodyTooLarge`` over ``BATCH_TASKS_MAX``."""
        items: list[msgspec.Raw] = []
        at, look = 0, _LOOK_BYTES
        while at < len(body):
            if pace.is_over():
                await pace.turn()
            if body[at] in _SPACE:
                ahead = body[at : at + look]
                at += len(ahead) - len(ahead.lstrip(_SPACE))
                look = min(2 * look, limits.ITEMS_WINDOW_BYTES)
                continue
            look = _LOOK_BYTES
            end = body.find(b"\n", at)
            end = len(body) if end < 0 else end
            items.append(msgspec.Raw(body[at : min(end, at + self._item_bytes_max + 1)]))
            self._check_count(items)
            at = end
        return items

    def _check_count(self, items: list[msgspec.Raw]) -> list[msgspec.Raw]:
        """The items, unless there are more than ``limits.BATCH_TASKS_MAX``."""
        if len(items) > limits.BATCH_TASKS_MAX:
            raise _too_many(f"more than {limits.BATCH_TASKS_MAX}" if len(items) > 10**5 else f"{len(items)}")
        return items

    def _cut_window(self, body: bytes, at: int) -> tuple[list[msgspec.Raw], int] | None:
        """The items of the window at ``at`` and where the next begins; None: no cut was found."""
        for cut, behind in _cuts(body, at, at + limits.ITEMS_WINDOW_BYTES):
            try:
                return _decode_items(b"[%b]" % body[at:cut]), behind
            except (ValueError, RecursionError):
                continue
        return None

    async def _cut_one(self, body: bytes, at: int, pace: Pace) -> tuple[list[msgspec.Raw], int]:
        """One item and where the next begins; no item if one at most is left for ``of_array``."""
        begin = _end_of_space(body, at)
        if body[begin : begin + 1] == b"]":
            return [], at
        size = 0
        for much in (_NEAR_BYTES, limits.ITEMS_WINDOW_BYTES, self._item_bytes_max):
            try:
                # Latin-1 keeps each byte a character; what it reads is thrown away.
                _, size = _find_end(body[begin : begin + min(much, self._item_bytes_max)].decode("latin-1"))
                break
            except RecursionError:
                raise Malformed("the body is nested too deeply to be read") from None
            except ValueError as why:
                if begin + much >= len(body):
                    raise Malformed(f"not valid JSON: {str(why)[:200]}") from None
        else:
            size = await self._end_of_too_long(body, begin, pace) - begin
        end = _end_of_space(body, begin + size)
        follows = body[end : end + 1]
        if follows == b"]" and size <= self._item_bytes_max:
            return [], at
        if follows not in (b",", b"]"):
            raise Malformed("not valid JSON: a comma is expected between two tasks")
        item = msgspec.Raw(body[begin : begin + min(size, self._item_bytes_max + 1)])
        return [item], end + (follows == b",")

    async def _end_of_too_long(self, body: bytes, begin: int, pace: Pace) -> int:
        """Where an item ends that is too long to be accepted."""
        depth, in_string, at = 0, False, begin
        while at < len(body):
            end = min(at + _SKIP_BYTES, len(body))
            while body[end - 1] == _BACKSLASH and end < len(body):
                end += 1  # the two of an escape stay together
            for count, token in enumerate(_tokens(body, at, end)):
                if count % _TOKENS_EACH == 0 and pace.is_over():
                    await pace.turn()
                kind = body[token.start()]
                if kind == _BACKSLASH:
                    continue
                if kind == _QUOTE:
                    in_string = not in_string
                elif not in_string:
                    depth += 1 if kind in b"[{" else -1
                if depth <= 0 and not in_string:
                    return token.end()
            at = end
            if pace.is_over():
                await pace.turn()
        raise Malformed("not valid JSON: a task that does not end")


def _end_of_space(body: bytes, at: int) -> int:
    found = _space(body, at)
    assert found is not None
    return found.end()


def _decode_items_of(body: bytes) -> list[msgspec.Raw]:
    """The items of a body ``{"tasks":[…]}``, decoded in one piece."""
    try:
        return _decode(body).tasks
    except (ValueError, RecursionError) as why:
        raise refusal(body, LooseBatch, why) from None


def _cuts(body: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where an item may end and the next one begin; the last such places before ``end``."""
    for _ in range(_CUTS_TRIED):
        end = body.rfind(b"}", begin, end)
        if end < 0:
            return
        found = _cut(body, end, end + _NEAR_BYTES)
        if found is not None:
            yield end + 1, found.end()

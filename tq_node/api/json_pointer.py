"""Finds the field that makes a body invalid, as a JSON Pointer.

``msgspec`` names it in an English sentence only. Here the body is decoded again along its type, one
field at a time, until the part that doesn't fit is found. Only for bodies that a decoder has
refused."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from tq_node import limits
from tq_node.errors import FieldError, InvalidField, Malformed, MissingField, TaskQueueError, UnknownField

_NAME_CHARS_MAX = 100
_LINES_HINT = (
    "; one task on each line goes to /tasks/batch with Content-Type: application/x-ndjson (with curl: --data-binary)"
)
_PARTS_LOOKED_AT_MAX = 100
"""Of a mapping, whose size the sender chooses; past these the pointer names only the field."""
_decode_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def refusal(
    body: bytes, kind: type[msgspec.Struct], why: Exception, at: str = "", *, within: bool = True
) -> TaskQueueError:
    """The error that says why ``body`` is not a ``kind``, with a pointer to the field.

    :param why: what the decoder of ``kind`` raised.
    :param at: pointer to the body itself.
    :param within: look for the wrong value; else only for unknown and missing fields, which is
        cheaper than to accept a body, and a wrong value is named in the sentence."""
    if isinstance(why, RecursionError):
        return Malformed("the body is nested too deeply to be read")
    if not isinstance(why, msgspec.ValidationError):
        return _no_json(why)
    try:
        # What is skipped unread is not checked for UTF-8, and a body that is no JSON comes before a
        # field that is wrong.
        body.decode("utf-8")
        raw_fields = _decode_parts(body)
    except msgspec.ValidationError:
        detail = "a JSON object is expected"
        return InvalidField(detail, field=at) if at else Malformed(detail)
    except (ValueError, RecursionError) as worse:
        return _no_json(worse)
    if not within:
        return _unknown_or_missing(raw_fields, kind, at) or InvalidField(str(why)[:200], field=at)
    return _first_bad_field(raw_fields, kind, at) or InvalidField(_sentence(why), field=at)


def _no_json(why: Exception) -> Malformed:
    hint = _LINES_HINT if "trailing characters" in str(why) else ""
    return Malformed(f"not valid JSON: {str(why)[:200]}{hint}")


class _Field(msgspec.Struct, frozen=True):
    """One field of a struct, with its type's decoder; cached: decoders are expensive to make."""

    type: Any
    required: bool
    decode: Callable[[msgspec.Raw], object]


@functools.cache
def _fields_of(kind: type[msgspec.Struct]) -> dict[str, _Field]:
    return {
        field.encode_name: _Field(field.type, field.required, msgspec.json.Decoder(field.type).decode)
        for field in msgspec.structs.fields(kind)
    }


@functools.cache
def _decoder_of(type_: Any) -> Callable[[msgspec.Raw], object]:
    return msgspec.json.Decoder(type_).decode


def _unknown_field(sent: dict[str, msgspec.Raw], fields: dict[str, _Field], at: str) -> UnknownField | None:
    for name in sent:
        if name not in fields:
            return UnknownField(f"{_clip(name)}: there is no such field", field=f"{at}/{_escape(name)}")
    return None


def _missing(name: str, at: str) -> MissingField:
    return MissingField(f"{name}: is required", field=f"{at}/{name}")


def _unknown_or_missing(sent: dict[str, msgspec.Raw], kind: type[msgspec.Struct], at: str) -> FieldError | None:
    fields = _fields_of(kind)
    missing = (_missing(name, at) for name, field in fields.items() if field.required and name not in sent)
    return _unknown_field(sent, fields, at) or next(missing, None)


def _first_bad_field(sent: dict[str, msgspec.Raw], kind: type[msgspec.Struct], at: str) -> TaskQueueError | None:
    fields = _fields_of(kind)
    if (unknown := _unknown_field(sent, fields, at)) is not None:
        return unknown
    for name, field in fields.items():
        if name not in sent:
            if field.required:
                return _missing(name, at)
            continue
        try:
            field.decode(sent[name])
        except msgspec.ValidationError as why:
            return _inside(sent[name], field.type, why, f"{at}/{name}", name)
        except (ValueError, RecursionError) as why:
            return Malformed(f"{name}: not valid JSON: {str(why)[:200]}")
    return None


def _inside(raw: msgspec.Raw, type_: object, why: Exception, at: str, name: str) -> FieldError:
    """The error of a wrong field, with a pointer to the innermost part that doesn't fit."""
    whole = InvalidField(f"{name}: {_sentence(why)}", field=at)
    if len(raw) > limits.ITEM_BYTES_MORE:
        return whole
    try:
        parts = _decode_parts(raw)
    except (ValueError, RecursionError):
        return whole
    for option in _options(type_):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            found = _first_bad_field(parts, option, at)
            return found if isinstance(found, FieldError) else whole
        if get_origin(option) is dict:
            return _inside_mapping(parts, option, at, name) or whole
    return whole


def _inside_mapping(parts: dict[str, msgspec.Raw], type_: object, at: str, name: str) -> FieldError | None:
    key_type, value_type = get_args(type_)
    decode = _decoder_of(value_type)
    for key, part in islice(parts.items(), _PARTS_LOOKED_AT_MAX):
        try:
            msgspec.convert(key, key_type)
            decode(part)
        except (ValueError, RecursionError) as why:
            return InvalidField(f"{name}: {_sentence(why)}", field=f"{at}/{_escape(key)}")
    return None


def _options(type_: object) -> list[object]:
    """The alternatives of an optional, annotated or union type."""
    if get_origin(type_) is Annotated:
        return _options(get_args(type_)[0])
    if get_origin(type_) in (Union, types.UnionType):
        return [option for part in get_args(type_) for option in _options(part)]
    return [type_]


def _sentence(why: Exception) -> str:
    """The sentence of msgspec without its ``- at $.path``."""
    return str(why).split(" - at ", 1)[0][:200].replace("Expected", "expected", 1)


def _clip(name: str) -> str:
    return name if len(name) <= _NAME_CHARS_MAX else name[:_NAME_CHARS_MAX] + "…"


def _escape(name: str) -> str:
    return _clip(name).replace("~", "~0").replace("/", "~1")

"""From a task's JSON to what its handler is given: as it is, or as the type that it says.

A handler whose payload is annotated with a dataclass, a ``msgspec.Struct`` or an attrs class (also
within a list, a dict or ``| None``) gets such an object. Other annotations are for people and type
checkers: nothing is converted for them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import msgspec

from tq_node.work.handlers import Handler
from tq_node.work.results import BadResult, decode_payload


def payload_of(handler: Handler, payload: bytes) -> Any:
    """The payload as this handler takes it.

    :raises ValueError: it is no JSON.
    :raises BadResult: it does not fit the type; another attempt would end the same."""
    wanted = _type_of(handler.function)
    if wanted is None:
        return decode_payload(payload)
    try:
        return msgspec.json.decode(payload, type=wanted)
    except msgspec.ValidationError as why:
        raise BadResult("invalid_payload", f"the handler of {handler.where} takes another: {why}", final=True) from None


@cache
def _type_of(function: Callable[..., Any]) -> Any:
    """The type to make payloads of; None: they stay what JSON makes of them."""
    plain = inspect.unwrap(function)
    try:
        first = next(iter(inspect.signature(plain).parameters.values()))
    except (TypeError, ValueError, StopIteration):
        return None
    said = first.annotation
    if isinstance(said, str):
        names = getattr(plain, "__globals__", None) or vars(sys.modules[plain.__module__])
        try:
            said = eval(said, names)  # noqa: S307 (its own handler's annotation; get_type_hints fails on any other)
        except (NameError, AttributeError, TypeError):  # imported for the type checker only
            return None
    return said if _holds_objects(said) else None


def _holds_objects(said: Any) -> bool:
    if isinstance(said, type) and not get_args(said):
        is_struct = issubclass(said, msgspec.Struct) or hasattr(said, "__attrs_attrs__")
        return is_struct or dataclasses.is_dataclass(said)
    return any(_holds_objects(part) for part in get_args(said))

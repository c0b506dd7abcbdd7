"""Imports handler modules and finds the handlers that they declare, in the node and in every worker
process.

Not part of ``registry``, whose imports would bring Twisted into each worker process."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from tq_node.work import handlers
from tq_node.work.handlers import Handler, HandlerError


def load_handlers(modules: Sequence[str]) -> dict[str, Handler]:
    """Import the modules and return their handlers by task type.

    A module's handlers are those declared in it or in its submodules, and those it imports from
    elsewhere by name. The working directory is searched last, so that a file there never hides an
    installed module.

    :raises HandlerError: a module can't be imported or has no handler; a type has two. One line."""
    found: dict[str, Handler] = {}
    for name in modules:
        _import(name)
        here = _handlers_of(name)
        if not here:
            raise HandlerError(f"module {name} declares no handler with @task")
        for handler in here:
            other = found.setdefault(handler.type, handler)
            if other is not handler:
                raise HandlerError(f"type {handler.type!r} has two handlers: {other.where} and {handler.where}")
    return found


def _import(name: str) -> None:
    directory = os.getcwd()
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except HandlerError as why:
        raise HandlerError(f"module {name}: {why}") from None
    except (Exception, SystemExit) as why:
        frames = traceback.extract_tb(why.__traceback__)
        at = (
            f" ({frames[-1].filename}:{frames[-1].lineno})" if frames and "importlib" not in frames[-1].filename else ""
        )
        text = " ".join(str(why).split())
        raise HandlerError(f"module {name} can't be imported: {type(why).__name__}: {text}{at}") from why


def _handlers_of(name: str) -> list[Handler]:
    """Handlers whose function lives in the module now imported, not in one that it replaced."""
    namespace = vars(sys.modules[name])
    imported = {id(value) for value in namespace.values() if callable(value)}
    here = []
    for handler in handlers.declared:
        home = getattr(handler.function, "__module__", "")
        if id(handler.function) in imported:
            here.append(handler)
        elif home == name or home.startswith(name + "."):
            current = vars(sys.modules[home]) if home in sys.modules else None
            if getattr(handler.function, "__globals__", current) is current:
                here.append(handler)
    return here

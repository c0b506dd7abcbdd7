"""``python -m tests.client.reference > docs/reference/python-client.md``: the page, out of signatures and docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import tq_node.client as client
from tq_node.client import limits

_WIDE = 90
HEAD = """# Python client

Made from the code by `python -m tests.client.reference`. How it is used, and what its errors mean:
[how-to](../howto/use-the-python-client.md).

`AsyncQueue` and `AsyncTask` have the same methods as `Queue` and `Task`, to be awaited; `AsyncQueue.list` is for `async for`.
Times are seconds.
"""


def page() -> str:
    parts = [HEAD]
    for kind in (client.Queue, client.Task):
        parts += _class(kind)
    configure = client.configure
    said = inspect.signature(configure)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in said.parameters.values()]
    said = said.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    parts.append(f"## `configure`\n\n```\nconfigure{said}\n```\n\n{_text(configure)}")
    parts.append("## Values\n\nFrozen; fields are named as in the [HTTP API](http-api.md).\n")
    parts += [_struct(kind) for kind in _of(msgspec.Struct)]
    parts.append("## Errors\n\nAll have `detail`, `code`, `status` (of HTTP), `field`, `task_id` and `request_id`.\n")
    parts.append("| error | is a | |\n|---|---|---|\n" + "\n".join(_error(kind) for kind in _of(Exception)) + "\n")
    parts.append("## Limits and waits\n\n`tq_node/client/limits.py`.\n\n| name | value | |\n|---|---|---|")
    parts.append("\n".join(_limits()) + "\n")
    return "\n".join(parts)


def _of(base: type) -> list[Any]:
    """In the order of the code."""
    named = [getattr(client, name) for name in client.__all__]
    kinds = [kind for kind in named if isinstance(kind, type) and issubclass(kind, base)]
    return sorted(kinds, key=lambda kind: (kind.__module__, _tree(kind).lineno))


def _tree(kind: type) -> ast.ClassDef:
    """From the source, so that the page is the same whatever Python makes it."""
    source = Path(str(sys.modules[kind.__module__].__file__)).read_text()
    return next(one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == kind.__name__)


def _class(kind: type) -> Iterator[str]:
    yield f"## `{kind.__name__}`\n\n{_text(kind)}"
    for member in _tree(kind).body:
        if not isinstance(member, ast.FunctionDef) or (member.name.startswith("_") and member.name != "__init__"):
            continue
        if member.name == "__init__" and kind is client.Task:
            continue  # nobody makes one
        shown = kind if member.name == "__init__" else getattr(kind, member.name)
        name = kind.__name__ if member.name == "__init__" else f"{kind.__name__}.{member.name}"
        is_property = any(isinstance(one, ast.Name) and one.id == "property" for one in member.decorator_list)
        yield f"### `{name}`\n\n```\n{name}{'' if is_property else _arguments(member)}\n```\n"
        if member.name != "__init__":
            yield _text(shown)


def _arguments(function: ast.FunctionDef) -> str:
    said = function.args
    required: list[ast.expr | None] = [None] * (len(said.args) - len(said.defaults))
    plain = [*zip(said.args, [*required, *said.defaults], strict=True)][1:]
    shown = [_argument(*one) for one in plain]
    shown += ["*"] * bool(said.kwonlyargs) + [
        _argument(*one) for one in zip(said.kwonlyargs, said.kw_defaults, strict=True)
    ]
    answer = ast.unparse(function.returns) if function.returns and function.name != "__init__" else ""
    after = f" -> {answer}" if answer else ""
    if len(flat := f"({', '.join(shown)}){after}") < _WIDE:
        return flat
    return "(\n" + "".join(f"    {one},\n" for one in shown) + f"){after}"


def _argument(said: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(said.annotation)}" if said.annotation else ""
    if default is None:
        return said.arg + kind
    value = ast.unparse(default)
    if value.startswith("limits."):
        value = str(getattr(limits, value.removeprefix("limits.")))
    return f"{said.arg}{kind} = {value}"


def _text(thing: object) -> str:
    """Markdown out of a docstring: fields become a list."""
    lines: list[str] = []
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        text = line.replace("``", "`")
        text = re.sub(r"(?<=\S) :(param|raises) ", r"\n:\1 ", text)
        for piece in text.split("\n"):
            field = re.match(r":(param|raises) ([^:]+): ?(.*)", piece)
            if field is None:
                lines.append(piece)
                continue
            if lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            names = ", ".join(f"`{name.strip()}`" for name in field[2].split(","))
            lines.append(f"- {'raises ' if field[1] == 'raises' else ''}{names}: {field[3]}")
    return "\n".join(lines) + "\n"


def _struct(kind: Any) -> str:
    fields = [ast.unparse(one) for one in _tree(kind).body if isinstance(one, ast.AnnAssign)]
    return f"### `{kind.__name__}`\n\n{_text(kind)}\n```\n" + "\n".join(fields) + "\n```\n"


def _error(kind: type) -> str:
    words = " ".join(_text(kind).split()) if kind.__dict__.get("__doc__") else ""
    return f"| `{kind.__name__}` | `{kind.__bases__[0].__name__}` | {words} |"


def _limits() -> Iterator[str]:
    """Each assignment, with the string behind it."""
    body = ast.parse(Path(str(limits.__file__)).read_text()).body
    for place, part in enumerate(body):
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            name = part.targets[0].id
            if name in ("KIB", "MIB"):
                continue
            behind = body[place + 1] if place + 1 < len(body) else None
            words = (
                behind.value.value if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant) else ""
            )
            yield f"| `{name}` | {getattr(limits, name):,} | {' '.join(str(words).replace('``', '`').split())} |"


if __name__ == "__main__":
    sys.stdout.write(page())

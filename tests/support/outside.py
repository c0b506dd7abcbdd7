"""What others rely on, as sorted JSON: a change that only keeps house leaves every line of it as it was.

    python -m tests.support.outside > FILE

Run it on two trees and compare with ``diff``. It holds the HTTP API without descriptions and names of components, what nodes
say to one another by its structure, metrics with their labels, options, codes and titles of errors, the steps of the schema
and the keys of the store's ``meta``. It also runs on trees from before the modules were sorted into packages.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import tq_node
from tests.upgrade import describe
from tq_node.errors import TaskQueueError

ROOT = Path(tq_node.__file__).parent
_is_sample = re.compile(r"(taskqueue_\w+)(?:\{(.*)\})? \S+").fullmatch
_label_names = re.compile(r'(\w+)="(?:[^"\\]|\\.)*"').findall


def _first(*names: str) -> Any:
    """The first of these modules that this tree has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


# --- HTTP ---
def _openapi() -> Any:
    document = _first("tq_node.api.openapi").document(_first("tq_node.api.assembly").documented_routes(), "0")
    decoded = msgspec.json.decode(document)
    return _inline(decoded["paths"], decoded["components"]["schemas"], ())


def _inline(part: Any, schemas: dict[str, Any], within: tuple[str, ...]) -> Any:
    """``part`` with each ``$ref`` replaced by what it refers to, without descriptions and titles of schemas."""
    if isinstance(part, list):
        return [_inline(one, schemas, within) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[1]
        if name in within:
            return f"{within[::-1].index(name) + 1} levels up"
        return _inline({**schemas[name], "title": ""}, schemas, (*within, name))
    texts = {name for name in ("description", "title") if isinstance(part.get(name), str)}
    return {name: _inline(value, schemas, within) for name, value in part.items() if name not in texts}


# --- between nodes ---
def _wire() -> dict[str, Any]:
    whole = msgspec.to_builtins(describe.describe())
    structs, enums = whole.pop("structs"), whole.pop("enums")

    def shape(kind: Any, within: tuple[str, ...]) -> Any:
        if not isinstance(kind, list):
            return kind
        word, *parts = kind
        if word == "enum":
            return ["enum", sorted(enums[parts[0]].values(), key=str)]
        if word != "struct":
            shapes = [shape(part, within) for part in parts]
            return [word, *(sorted(shapes, key=json.dumps) if word == "union" else shapes)]
        name = parts[0]
        if name in within:
            return ["struct", f"{within[::-1].index(name) + 1} levels up"]
        struct = dict(structs[name])
        # Fields of an array have a place and no name.
        struct["fields"] = [
            [None if struct["array"] else field, shape(type_, (*within, name)), required]
            for field, type_, required in struct["fields"]
        ]
        return ["struct", struct]

    tags = whole.pop("kinds of table commands")
    levels = whole.pop("feature levels of table commands")
    bodies = {name: {**body, "type": shape(body["type"], ())} for name, body in whole.pop("bodies").items()}
    return {**whole, "bodies": bodies, "levels by tag": {str(tag): levels.get(name) for name, tag in tags.items()}}


# --- metrics ---
def _metrics() -> list[str]:
    """Each sample's name with its labels, of a page on which every metric has a value."""
    module = _first("tq_node.observe.metrics")
    exposition = _first("tq_node.observe.exposition")
    made = module.Metrics()
    for name, kind in typing.get_type_hints(module.Sources, vars(module) | {"Callable": typing.Callable}).items():
        setattr(made.sources, name, _source(kind))
    row = _a_row()
    for change in _changes(row):
        made.transitions([(change, row)])
    made.lease_lost("expired")
    made.http("/x", 200, 0.1)
    found = set()
    for content_type in (exposition.TEXT, exposition.OPENMETRICS):
        for line in "".join(exposition.Exposition(made).blocks(content_type, {"q": 1.0})).splitlines():
            if (sample := _is_sample(line.partition(" # ")[0])) is not None:
                found.add(f"{sample[1]}{{{','.join(sorted(_label_names(sample[2] or '')))}}}")
            elif line.startswith("# TYPE taskqueue_"):
                found.add(line)
    return sorted(found)


def _source(kind: Any) -> Any:
    """A callable that returns a value of the type that the callable ``kind``, or None, is declared to return."""
    callable_ = next(option for option in typing.get_args(kind) if option is not type(None))
    text = str(typing.get_args(callable_)[1])
    if "Iterable[tuple" in text:
        return lambda: [("q", [1] * 6)]
    if "Iterable" in text:
        return lambda: ["q"]
    if "Mapping" in text:
        return lambda: {"x": 1}
    return (lambda: (1, 1)) if "tuple" in text else (lambda: 1)


def _a_row() -> Any:
    """A failed task, after one attempt."""
    types = _first("tq_node.types")
    facts: dict[str, Any] = {"id": "a", "type": "t", "queue": "q", "payload": b"null", "tags": {}, "timeout_ms": None}
    numbers = {"priority": 5, "created_us": 1, "max_attempts": 3, "backoff": types.Backoff(), "content_hash": b""}
    known = types.TaskSpec.__struct_fields__
    spec = types.TaskSpec(**{name: value for name, value in (facts | numbers).items() if name in known})
    attempt = types.AttemptRecord(1, "node-1", 1, 2, "failed", None)
    return types.TaskRow(spec=spec, partition=0, rev=1, state=types.State.FAILED, run_at_us=1, attempts=(attempt,))


def _changes(row: Any) -> Iterator[Any]:
    types = _first("tq_node.types")
    steps = [None, types.State.PENDING, types.State.PROCESSING, types.State.FAILED]
    for old, new in itertools.pairwise(steps):
        values = {"task_id": "a", "task_type": "t", "queue": "q", "from_state": old, "to_state": new, "attempt": 1}
        yield types.Transition(**values, partition=0, at_us=5)


# --- what operators and callers see ---
def _options() -> dict[str, Any]:
    rows = _first("tq_node.cli.option_table", "tq_node.option_table").OPTIONS
    return {row.name: [row.metavar, row.default, list(row.environment), row.many] for row in rows}


def _errors() -> list[Any]:
    """Of every kind in the product: code, title, HTTP status, whether to try again, whether the outcome is known."""
    for module in pkgutil.walk_packages([str(ROOT)], "tq_node."):
        if not module.name.rpartition(".")[2].startswith("__main__") and ".client" not in module.name:
            importlib.import_module(module.name)
    found, kinds = set(), [TaskQueueError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("tq_node."):
            found.add((kind.code, kind.title, kind.status, kind.retryable, kind.definite))
    return sorted(map(list, found))


# --- on the disk ---
def _schema() -> dict[str, str]:
    steps = _first("tq_node.store.sqlite.upgrade", "tq_node.store.upgrades").load_steps()
    return {str(step.version): step.sql for step in steps}


def _meta_keys() -> list[str]:
    """Texts of the constants that modules which know the store's ``meta`` use as keys."""
    constants: dict[str, str] = {}
    keys: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"\bmeta\b", text):
            continue
        tree = ast.parse(text)
        for node in tree.body:
            match node:
                case ast.Assign([ast.Name(name)], ast.Constant(str(value))) if name.strip("_").isupper():
                    constants[name] = value
        for inner in ast.walk(tree):
            match inner:
                case ast.Dict(keys=used):
                    keys.update(one.id for one in used if isinstance(one, ast.Name))
                case ast.Subscript(slice=ast.Name(name)) | ast.Compare(ast.Name(name), [ast.In() | ast.NotIn()]):
                    keys.add(name)
                case ast.Call(ast.Attribute(attr="get"), [ast.Name(name), *_]):
                    keys.add(name)
    return sorted({constants[name] for name in keys if name in constants})


def outside() -> dict[str, Any]:
    return {
        "errors": _errors(),
        "meta keys": _meta_keys(),
        "metrics": _metrics(),
        "openapi": _openapi(),
        "options": _options(),
        "schema": _schema(),
        "wire": _wire(),
    }


if __name__ == "__main__":
    json.dump(outside(), sys.stdout, indent=1, sort_keys=True, default=str)
    sys.stdout.write("\n")

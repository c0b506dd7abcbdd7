"""What the release whose code is imported says to its peers, as plain JSON: commands, their arguments, the shape of every body.

``record.py`` keeps one of a release; ``frozen.py`` reads boxes by it, without that release's code.

    PYTHONPATH=TREE python tests/upgrade/describe.py

A type is a word (``int``), a word with bounds (``{"of": "int", "ge": 0}``) or a list: ``["list", type]``, ``["tuple", type, …]``,
``["many", type]`` (a tuple of any length), ``["dict", key, value]``, ``["union", type, …]``, ``["struct", name]``,
``["enum", name]``.
"""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

import msgspec
from msgspec import inspect
from twisted.protocols.amp import Argument

from tq_node.cluster import commands as table
from tq_node.cluster.liveness import Evidence
from tq_node.cluster.map import FORMAT as MAP_FORMAT
from tq_node.cluster.records import FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN, FIELD_LEVELS, ClusterMap
from tq_node.partition import entries
from tq_node.partition import messages as partition
from tq_node.raft import messages as raft
from tq_node.runtime import peer_calls
from tq_node.runtime.control import membership, registration
from tq_node.store.snapshots import RowParts, TombstoneParts
from tq_node.store.sqlite.upgrade import load_steps
from tq_node.types import TaskSpec
from tq_node.wire import bounds, codec, commands, errors, handshake

BODY_HEAD = f"{codec.VERSION:02x}"
COMMAND_HEAD = f"{table.FORMAT:02x}"
BODIES: dict[str, tuple[str, Any]] = {
    # Arguments that are opaque to AMP: the bytes they begin with, and what follows.
    "Hello.hello": (BODY_HEAD, handshake.Introduction),
    "Hello.answer.hello": (BODY_HEAD, handshake.Introduction),
    "Raft.messages": (BODY_HEAD, list[raft.AnyMessage]),
    "Confirm.body": (BODY_HEAD, partition.Ping | partition.Pong),
    "Register.body": (COMMAND_HEAD, table.AnyCommand),
    "Register.answer.body": (BODY_HEAD, registration.Welcomed),
    "Heartbeat.body": (BODY_HEAD, membership.Beat),
    "Evidence.body": (BODY_HEAD, Evidence),
    "Propose.body": (COMMAND_HEAD, table.AnyCommand),
    "Propose.answer.body": (BODY_HEAD, registration.Outcome),
    "Forward.calls": (BODY_HEAD, list[codec.ForwardedCall]),
    "Forward.answer.results": (BODY_HEAD, list[codec.ForwardedResult]),
    "Data.body": ("", list[partition.AnyMessage]),
    # What lies inside these, again as bytes.
    "error": ("", errors.ErrorBody),
    "effects": ("", list[entries.Effect]),
    "spec": ("", TaskSpec),
    "row": ("", entries._Body),
    "chunk": ("", tuple[list[RowParts], list[TombstoneParts]]),
    "command": (COMMAND_HEAD, table.AnyCommand),
    "table": (f"{MAP_FORMAT:02x}", ClusterMap),
    "change": ("", raft.ConfigurationChange),
}
_WORDS: dict[type[inspect.Type], str] = {
    inspect.IntType: "int", inspect.StrType: "str", inspect.BytesType: "bytes", inspect.BoolType: "bool",
    inspect.FloatType: "float", inspect.NoneType: "null", inspect.RawType: "raw",
}  # fmt: skip
_BOUNDS = ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern")


class _Describing:
    def __init__(self) -> None:
        self.structs: dict[str, Any] = {}
        self.enums: dict[str, Any] = {}

    def type(self, info: inspect.Type) -> Any:
        """:raises TypeError: of a kind that has not crossed the wire so far; say here how to write it down."""
        word = _WORDS.get(type(info))
        if word is not None:
            said = {name: value for name in _BOUNDS if (value := getattr(info, name, None)) is not None}
            return {"of": word, **said} if said else word
        if isinstance(info, inspect.StructType):
            return ["struct", self._struct(info)]
        if isinstance(info, inspect.NamedTupleType):
            return ["tuple", *(self.type(field.type) for field in info.fields)]
        if isinstance(info, inspect.EnumType):
            name = f"{info.cls.__module__}.{info.cls.__qualname__}"
            self.enums[name] = {member.name: member.value for member in info.cls}
            return ["enum", name]
        if isinstance(info, inspect.UnionType):
            return ["union", *map(self.type, info.types)]
        if isinstance(info, inspect.DictType):
            return ["dict", self.type(info.key_type), self.type(info.value_type)]
        if isinstance(info, inspect.TupleType):
            return ["tuple", *map(self.type, info.item_types)]
        if isinstance(info, inspect.VarTupleType):
            return ["many", self.type(info.item_type)]
        if isinstance(info, (inspect.ListType, inspect.SetType, inspect.FrozenSetType)):
            return ["list", self.type(info.item_type)]
        raise TypeError(f"no way to write {info} down")

    def _struct(self, info: inspect.StructType) -> str:
        name = f"{info.cls.__module__}.{info.cls.__qualname__}"
        if name not in self.structs:
            self.structs[name] = {}  # so that one that holds itself ends here
            self.structs[name] |= {
                "tag": info.tag,
                "array": info.array_like,
                "strict": info.forbid_unknown_fields,
                "fields": [[field.encode_name, self.type(field.type), field.required] for field in info.fields],
            }
        return name


def _argument(argument: Argument) -> dict[str, Any]:
    sizes = {name: value for name, value in vars(argument).items() if isinstance(value, int) and name != "optional"}
    return {"kind": type(argument).__name__, "optional": bool(argument.optional), **sizes}


def _commands() -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = [commands.PeerCommand]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if not kind.__subclasses__():
            found[kind.commandName.decode()] = {
                "lanes": sorted(map(str, kind.lanes)),
                "answered": kind.requiresAnswer,
                "arguments": {name.decode(): _argument(argument) for name, argument in kind.arguments},
                "answer": {name.decode(): _argument(argument) for name, argument in kind.response},
            }
    return found


def describe() -> dict[str, Any]:
    describing = _Describing()
    bodies = {
        name: {"head": head, "type": describing.type(inspect.type_info(kind))} for name, (head, kind) in BODIES.items()
    }
    for kind in peer_calls.KINDS.values():
        for suffix, made in (("", kind.call), (".answer", kind.result)):
            decoder: Any = getattr(made._decode, "__self__")  # noqa: B009 (a bound method of msgspec's)
            bodies[f"forward {kind.name}{suffix}"] = {
                "head": BODY_HEAD,
                "type": describing.type(inspect.type_info(decoder.type)),
            }
    return {
        "protocol": [bounds.PROTOCOL_MIN, bounds.PROTOCOL_MAX],
        "features": [FEATURE_LEVEL_MIN, FEATURE_LEVEL_MAX],
        "schema": load_steps()[-1].version,
        "commands": _commands(),
        "bodies": bodies,
        "errors": sorted(errors.KIND_OF),
        "kinds of table commands": {kind.__name__: kind.__struct_config__.tag for kind in get_args(table.AnyCommand)},
        "feature levels of table commands": {kind.__name__: level for kind, level in table.FEATURE_LEVEL_OF.items()},
        "feature levels of table fields": FIELD_LEVELS,
        "structs": describing.structs,
        "enums": describing.enums,
    }


def written(description: dict[str, Any]) -> str:
    """As JSON with a line for each command, body and struct, so that two releases can be compared by eye."""
    parts = []
    for key, value in sorted(description.items()):
        if isinstance(value, dict):
            lines = (f"  {json.dumps(name)}: {json.dumps(one, sort_keys=True)}" for name, one in sorted(value.items()))
            parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(written(msgspec.to_builtins(describe())))

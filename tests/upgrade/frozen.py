"""A release's wire as ``describe.py`` wrote it down, made into what reads boxes without that release's code, or today's.

What it refuses, a node of that release refuses.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Union

import msgspec

VALUE_BYTES_MAX = 60_000
"""A longer value is cut over ``name``, ``name.1``, …; part of protocol 1."""
Box = Mapping[str, bytes]
_WORDS = {"int": int, "str": str, "bytes": bytes, "bool": bool, "float": float, "null": type(None), "raw": msgspec.Raw}


def _enum_of(name: str, members: Mapping[str, Any]) -> type[enum.Enum]:
    made: type[enum.Enum] = enum.Enum(name.rpartition(".")[2], members)  # type: ignore[misc]
    return made


class Unreadable(Exception):
    """The release would refuse it: what, and why."""


class Read(NamedTuple):
    """A struct that was found in a box: its name in the release, with its last word alone in ``kind``."""

    name: str
    value: Any

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


class Frozen:
    """:param description: of ``describe.describe``, from the release."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.commands: dict[str, Any] = description["commands"]
        self._structs: dict[str, type[msgspec.Struct]] = {}
        self._enums: dict[str, type[enum.Enum]] = {}
        self._decoders: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {}
        for name, body in description["bodies"].items():
            decoder = msgspec.msgpack.Decoder(self._type(body["type"]))
            self._decoders[name] = bytes.fromhex(body["head"]), decoder.decode

    # --- shapes ---
    def _type(self, said: Any) -> Any:
        if isinstance(said, str):
            return _WORDS[said]
        if isinstance(said, dict):
            plain = _WORDS[said["of"]]
            return Annotated[plain, msgspec.Meta(**{name: bound for name, bound in said.items() if name != "of"})]
        word, *parts = said
        if word == "struct":
            return self._struct(parts[0])
        if word == "enum":
            return self._enum(parts[0])
        types = tuple(map(self._type, parts))
        if word == "union":
            return Union[types]  # noqa: UP007 (made at run time)
        if word == "tuple":
            return tuple.__class_getitem__(types)
        if word == "many":
            return tuple.__class_getitem__((types[0], ...))
        return list.__class_getitem__(types) if word == "list" else dict.__class_getitem__(types)

    def _enum(self, name: str) -> type[enum.Enum]:
        if name not in self._enums:
            self._enums[name] = _enum_of(name, self.description["enums"][name])
        return self._enums[name]

    def _struct(self, name: str) -> type[msgspec.Struct]:
        if name not in self._structs:
            shape = self.description["structs"][name]
            fields: list[Any] = [
                (field, self._type(said)) if required else (field, self._type(said), None)
                for field, said, required in shape["fields"]
            ]
            self._structs[name] = msgspec.defstruct(
                name.rpartition(".")[2],
                fields,
                frozen=True,
                tag=shape["tag"],
                array_like=shape["array"],
                forbid_unknown_fields=shape["strict"],
                namespace={"release_name": name, "__module__": __name__},
            )
        return self._structs[name]

    # --- bodies ---
    def decode(self, body: str, data: bytes) -> Any:
        """:raises Unreadable: another version, or not of its shape."""
        head, decode = self._decoders[body]
        if not data.startswith(head):
            raise Unreadable(f"{body} begins with {data[:1].hex() or 'nothing'}, not with {head.hex()}")
        try:
            return decode(data[len(head) :])
        except (msgspec.DecodeError, ValueError) as why:
            raise Unreadable(f"{body}: {why}: {data[:200].hex()}") from None

    def _inside(self, value: Any) -> Iterator[Read]:
        """Every struct of a value, and those in the bytes that it carries."""
        if isinstance(value, (list, tuple)):
            for item in value:
                yield from self._inside(item)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from self._inside(key)
                yield from self._inside(item)
        elif isinstance(value, msgspec.Struct):
            read = Read(value.release_name, value)  # type: ignore[attr-defined]
            yield read
            for field in value.__struct_fields__:
                yield from self._inside(getattr(value, field))
            yield from self._carried(read)

    def _carried(self, read: Read) -> Iterator[Read]:
        name, value = read
        if name == "tq_node.partition.messages.LogEntry":
            yield from self._inside(self.decode("effects", value.payload))
        elif name == "tq_node.partition.entries.Put":
            yield from self._inside(self.decode("row", value.body))
            if value.spec is not None:
                yield from self._inside(self.decode("spec", value.spec))
        elif name == "tq_node.partition.messages.SnapChunk":
            rows, _ = self.decode("chunk", value.data)
            for row in rows:
                yield from self._inside(self.decode("spec", row[-2]))
                yield from self._inside(self.decode("row", row[-1]))
        elif name == "tq_node.raft.messages.Entry" and value.kind.name == "DATA":
            yield from self._inside(self.decode("command", value.data))
        elif name == "tq_node.raft.messages.Entry" and value.kind.name == "CONFIGURATION":
            yield from self._inside(self.decode("change", value.data))
        elif name == "tq_node.raft.messages.SnapshotChunk" and len(value.data) == value.total_bytes:
            yield from self._inside(self.decode("table", value.data))
        elif name == "tq_node.wire.codec.ForwardedCall" and f"forward {value.kind}" in self._decoders:
            # A kind that it does not know it refuses, and the caller has to know what that means.
            yield from self._inside(self.decode(f"forward {value.kind}", value.body))

    # --- boxes ---
    def read(self, command: str, what: str, box: Box, calls: list[str] | None = None) -> list[Read]:
        """All that a box holds.

        :param what: ``command``, ``answer`` or ``error``. :param calls: for an answer to ``Forward``, the kinds that were asked.
        :raises Unreadable: a node of the release would not understand it.
        """
        if what == "error":
            return list(self._inside(self.decode("error", box["_body"])))
        known = self.commands.get(command)
        if known is None:
            raise Unreadable(f"no command {command}")
        found: list[Read] = []
        for name, argument in known["arguments" if what == "command" else "answer"].items():
            value = self._value(name, argument, box)
            body = f"{command}.{name}" if what == "command" else f"{command}.answer.{name}"
            if value is not None and body in self._decoders:
                found += self._inside(decoded := self.decode(body, value))
                if body == "Forward.answer.results":
                    found += self._results(decoded, calls or [])
        return found

    def _results(self, results: list[Any], calls: list[str]) -> Iterator[Read]:
        if len(results) != len(calls):
            raise Unreadable(f"{len(results)} results for {len(calls)} calls")
        for kind, result in zip(calls, results, strict=True):
            body = "error" if result.error else f"forward {kind}.answer"
            if body in self._decoders:
                yield from self._inside(self.decode(body, result.body))

    def _value(self, name: str, argument: Mapping[str, Any], box: Box) -> bytes | None:
        """:raises Unreadable: it is missing, or not of its kind."""
        if name not in box:
            if argument["optional"]:
                return None
            raise Unreadable(f"{name} is missing: {sorted(box)}")
        value, pieces = box[name], 1
        while argument["kind"] == "Blob" and (piece := box.get(f"{name}.{pieces}")) is not None:
            value, pieces = value + piece, pieces + 1
        kind, size = argument["kind"], len(value)
        fits = {
            "Number": lambda: value.isdigit() and str(int(value)).encode() == value and int(value) <= argument["most"],
            "Flag": lambda: value in (b"0", b"1"),
            "Word": lambda: argument["least"] <= size <= argument["most"] and all(0x21 <= c <= 0x7E for c in value),
            "Octets": lambda: size == argument["length"],
            "Blob": lambda: size <= argument["bytes_max"],
        }[kind]
        if not fits():
            raise Unreadable(f"{name} is no {kind}: {value[:100]!r}")
        return value

"""Whether a release can be read by the one before, and can read it: a comparison of two descriptions (``describe.py``).

``docs/reference/peer-protocol.md``, *Versions*, says the same in prose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Description = Mapping[str, Any]
TABLE = "tq_node.cluster.records.ClusterMap"
SIZES = ("most", "least", "length", "bytes_max")


def breaks(old: Description, new: Description) -> list[str]:
    """What makes the two unfit for one cluster, in words; empty where they can work together."""
    return [*_ranges(old, new), *_commands(old, new), *_bodies(old, new), *_table(old, new)]


def _ranges(old: Description, new: Description) -> Iterator[str]:
    for name in ("protocol", "features"):
        if min(old[name][1], new[name][1]) < max(old[name][0], new[name][0]):
            yield f"no {name} in common: {old[name]} and {new[name]}"


def _commands(old: Description, new: Description) -> Iterator[str]:
    for name, known in old["commands"].items():
        now = new["commands"].get(name)
        if now is None:
            yield f"command {name} is gone"
            continue
        if not set(known["lanes"]) <= set(now["lanes"]):
            yield f"command {name} is not served on {known['lanes']}"
        if known["answered"] != now["answered"]:
            yield f"command {name}: answered or not"
        for part in ("arguments", "answer"):
            yield from _arguments(f"command {name}, {part}", known[part], now[part])


def _arguments(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name, known in old.items():
        now = new.get(name)
        if now is None:
            yield f"{where}: {name} is gone"
        elif known["kind"] != now["kind"] or (not known["optional"] and now["optional"]):
            yield f"{where}: {name} was {known}, is {now}"
        elif any(known.get(size) != now.get(size) for size in SIZES):
            yield f"{where}: bounds of {name} were {known}, are {now}"
    for name in new.keys() - old.keys():
        if not new[name]["optional"]:
            yield f"{where}: {name} is new, and must be there"


def _bodies(old: Description, new: Description) -> Iterator[str]:
    for name, known in old["bodies"].items():
        now = new["bodies"].get(name)
        if now is None:
            yield f"body {name} is gone"
        elif known["head"] != now["head"]:
            yield f"body {name} begins with {now['head']}, was {known['head']}"
        else:
            yield from _Comparing(old, new).type(f"body {name}", known["type"], now["type"])


def _table(old: Description, new: Description) -> Iterator[str]:
    """A kind of command that a node does not know ends it: it may be written only above the level that all can read (F44)."""
    kinds, levels = "kinds of table commands", "feature levels of table commands"
    for name, tag in new[kinds].items():
        if name not in old[kinds] and new[levels].get(name, 1) <= old["features"][1]:
            yield f"command {name} ({tag}) of the table is new, and needs a feature level above {old['features'][1]}"


def _word(type_: Any) -> Any:
    """A type without its bounds. Where there were none, some may be set beyond all that the last release says (recorded)."""
    return type_["of"] if isinstance(type_, Mapping) else type_


class _Comparing:
    """Types in step, each pair of structs once."""

    def __init__(self, old: Description, new: Description) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[str, str]] = set()

    def type(self, where: str, old: Any, new: Any) -> Iterator[str]:
        if not (isinstance(old, list) and isinstance(new, list) and old[0] == new[0]):
            if old != new and old != _word(new):
                yield f"{where}: was {old}, is {new}"
            return
        if old[0] == "struct":
            yield from self._struct(old[1], new[1])
        elif old[0] == "enum":
            yield from self._enum(old[1], new[1])
        elif old[0] == "union":
            yield from self._union(where, old[1:], new[1:])
        elif len(old) != len(new):
            yield f"{where}: was {old}, is {new}"
        else:
            for known, now in zip(old[1:], new[1:], strict=True):
                yield from self.type(where, known, now)

    def _enum(self, old: str, new: str) -> Iterator[str]:
        known, now = self._old["enums"][old], self._new["enums"][new]
        if sorted(map(repr, known.values())) != sorted(map(repr, now.values())) or any(
            now.get(name, value) != value for name, value in known.items()
        ):
            yield f"{old}: was {known}, is {now}"

    def _union(self, where: str, old: list[Any], new: list[Any]) -> Iterator[str]:
        """Members that are structs go by their tag; a table's command may be new (``_table`` judges it)."""
        known, now = self._members(self._old, old), self._members(self._new, new)
        for key, member in known.items():
            if key in now:
                yield from self.type(where, member, now[key])
            else:
                yield f"{where}: {member} is gone"
        for key in now.keys() - known.keys():
            if not str(now[key][-1]).startswith("tq_node.cluster.commands."):
                yield f"{where}: {now[key]} is new"

    def _members(self, description: Description, members: list[Any]) -> dict[str, Any]:
        found = {}
        for member in members:
            tag = (
                description["structs"][member[1]]["tag"] if isinstance(member, list) and member[0] == "struct" else None
            )
            plain = member[0] if isinstance(member, list) else _word(member)
            found[repr(plain if tag is None else tag)] = member
        return found

    def _comes_with_a_level(self, struct: str, field: str) -> bool:
        """The table leaves such a field out until all members know it (F44)."""
        level = self._new.get("feature levels of table fields", {}).get(field, 1)
        return struct == TABLE and bool(level > self._old["features"][1])

    def _struct(self, old: str, new: str) -> Iterator[str]:
        if (old, new) in self._seen:
            return
        self._seen.add((old, new))
        known, now = self._old["structs"][old], self._new["structs"][new]
        for what in ("tag", "array", "strict"):
            if known[what] != now[what]:
                yield f"{old}: {what} was {known[what]}, is {now[what]}"
        if not known["array"]:  # then fields go by their names, and may stand anywhere
            names = [field[0] for field in known["fields"]]
            found = {field[0]: field for field in now["fields"]}
            added = [field for field in now["fields"] if field[0] not in names]
            now = now | {"fields": [*(found[name] for name in names if name in found), *added]}
        for place, (field, now_field) in enumerate(zip(known["fields"], now["fields"], strict=False)):
            yield from self.type(f"{old}.{field[0]}", field[1], now_field[1])
            if field[0] != now_field[0] or (field[2] and not now_field[2]):
                yield f"{old}: field {place} was {field}, is {now_field}"
        if len(now["fields"]) < len(known["fields"]):
            yield f"{old}: fields are gone"
        for field in now["fields"][len(known["fields"]) :]:
            if field[2]:
                yield f"{old}: {field[0]} is new, and must be there"
            elif known["strict"] and not self._comes_with_a_level(old, field[0]):
                yield f"{old}: {field[0]} is new, and the other refuses what it does not know"

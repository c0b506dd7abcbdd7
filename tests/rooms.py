"""The rooms of the code and their arrows, from the real imports: ``python -m tests.rooms > docs/explanation/rooms.md``.

A room is a package of ``tq_node``, a package of ``tq_node.runtime``, or a module beside them. Left out are
values that everybody shares, and an arrow where a longer way leads to the same room.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.harness import PROJECT

SHARED = {"types", "tokens", "audit", "errors", "limits", "encoding", "beats", "slices", "observe"}
"""Values and small tools that nearly every room imports: they would hide the rest."""

PAGE = """# The rooms

Printed by `python -m tests.rooms`; `tests/test_rooms.py` looks that it is still true. An arrow
points to what a room imports. Left out: arrows that a longer way replaces, and what nearly
everybody imports
({shared}).
What each room is: [ARCHITECTURE](../../ARCHITECTURE.md).

```mermaid
flowchart TB
{arrows}
```
"""


def room_of(module: str) -> str | None:
    """``tq_node.runtime.tasks.submit``: ``runtime.tasks``. None for what belongs to no room."""
    parts = module.split(".")
    if parts[0] == "tq_tui":
        return "tq_tui"
    if parts[0] != "tq_node" or len(parts) < 2 or parts[1] in SHARED or not _exists(parts[:2]):
        return None
    if parts[1] == "runtime" and len(parts) > 2 and (PROJECT / "tq_node/runtime" / parts[2]).is_dir():
        return ".".join(parts[1:3])
    return parts[1]


def _exists(parts: list[str]) -> bool:
    path = PROJECT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(path for folder in ("tq_node", "tq_tui") for path in (PROJECT / folder).rglob("*.py")):
        room = room_of(".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"))
        if room is not None:
            found.setdefault(room, set()).update(
                other for name in imports_of(path) if (other := room_of(name)) is not None and other != room
            )
    return found


def reach(rooms: Mapping[str, set[str]], start: str) -> set[str]:
    """All rooms that ``start`` imports, directly or by way of others."""
    seen: set[str] = set()
    ahead = list(rooms[start])
    while ahead:
        room = ahead.pop()
        if room not in seen:
            seen.add(room)
            ahead += rooms.get(room, ())
    return seen


def reduced(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer way replaces. Rooms that import each other keep theirs."""
    far = {room: reach(rooms, room) for room in rooms}
    return {
        room: {
            other
            for other in others
            if not any(other in far[third] and room not in far[third] for third in others - {other})
        }
        for room, others in rooms.items()
    }


def page() -> str:
    lines = []
    for room, others in sorted(reduced(arrows()).items()):
        name = room.replace(".", "_")
        lines.append(f'    {name}["{room}"]')
        lines += [f"    {name} --> {other.replace('.', '_')}" for other in sorted(others)]
    return PAGE.format(shared=", ".join(f"`{name}`" for name in sorted(SHARED)), arrows="\n".join(lines))


if __name__ == "__main__":
    print(page(), end="")

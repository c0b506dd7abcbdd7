"""PURE. What is typed behind ``/``, as a query: ``status:failed type:email !queue:bulk a text``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tq_tui.client.models import STATES, Task

FIELDS = ("status", "type", "queue", "node")
SORTS = {
    "-created_at": "newest first",
    "created_at": "oldest first",
    "-run_at": "latest due first",
    "run_at": "due first",
    "-priority": "highest priority first",
    "priority": "lowest priority first",
    "id": "by id",
    "-id": "by id, backwards",
}
"""What the server sorts by, in the order in which they come up, and what that means."""
_ALIASES = {"state": "status", "s": "status", "t": "type", "q": "queue", "n": "node"}


class BadFilter(ValueError):
    """What was typed can't be asked of a node; the message says what to type instead."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a filter admits for one field: ``values``, or if ``negated`` all others."""

    values: tuple[str, ...]
    negated: bool = False

    def parameter(self) -> str:
        return ("!" if self.negated else "") + ",".join(self.values)

    def admits(self, value: str) -> bool:
        return (value in self.values) != self.negated


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """The query for a page of tasks. ``dead``: only dead ones. ``sort``: one of the server's."""

    choices: tuple[tuple[str, Choice], ...] = ()
    text: str = ""
    sort: str = "-created_at"
    limit: int = 200
    cursor: str | None = None
    dead: bool = False

    @property
    def path(self) -> str:
        return "/tasks/dead" if self.dead else "/tasks/list"

    def parameters(self) -> list[tuple[str, str]]:
        """Parameters of the URL; the list holds each task of the cluster once."""
        found = [(field, choice.parameter()) for field, choice in self.choices]
        if self.text:
            found.append(("q", self.text))
        if self.sort != "id":
            found.append(("sort", self.sort))
        found += [("limit", str(self.limit)), ("scope", "cluster")]
        if self.cursor is not None:
            found.append(("cursor", self.cursor))
        return found

    def admits(self, task: Task) -> bool:
        """Whether the server would list it; for the scripted client, and between two requests."""
        fields = {"status": task.status, "type": task.type, "queue": task.queue, "node": task.node or ""}
        if self.dead and task.status != "failed":
            return False
        if self.text and self.text.lower() not in f"{task.id}\n{task.type}".lower():
            return False
        return all(choice.admits(fields[field]) for field, choice in self.choices)

    def page(self, cursor: str | None) -> TaskQuery:
        return replace(self, cursor=cursor)


def parse(typed: str, base: TaskQuery = TaskQuery()) -> TaskQuery:
    """The query of a filter line, else ``base``'s; raises ``BadFilter`` with words for the user."""
    chosen: dict[str, Choice] = {}
    words: list[str] = []
    for word in typed.split():
        field, value, negated = _field(word)
        if field is None:
            if negated:
                raise BadFilter("! works with status: type: queue: node:, not with text")
            words.append(word)
        elif not value:
            raise BadFilter(f"{field}: what? Such as {_example(field)}")
        else:
            chosen[field] = _joined(field, chosen.get(field), Choice(_values(field, value), negated))
    choices = tuple((field, chosen[field]) for field in FIELDS if field in chosen)
    return replace(base, choices=choices, text=" ".join(words), cursor=None)


def _field(word: str) -> tuple[str | None, str, bool]:
    negated = word.startswith("!")
    name, colon, value = word.removeprefix("!").partition(":")
    if value.startswith("!"):
        negated, value = not negated, value[1:]
    name = _ALIASES.get(name.lower(), name.lower())
    # Ids may hold colons: what is no field of ours is text.
    return (name, value, negated) if colon and name in FIELDS else (None, word, word.startswith("!"))


def _values(field: str, value: str) -> tuple[str, ...]:
    values = tuple(part for part in value.split(",") if part)
    if field == "status":
        values = tuple(_state(part) for part in values)
    return values


def _state(typed: str) -> str:
    """A state by any beginning of its name."""
    matching = [state for state in STATES if state.startswith(typed.lower())]
    if len(matching) != 1:
        raise BadFilter(f"no state {typed!r}: {', '.join(STATES)}")
    return matching[0]


def _joined(field: str, before: Choice | None, now: Choice) -> Choice:
    if before is None:
        return now
    if before.negated != now.negated:
        raise BadFilter(f"{field}: both with and without !; one of them says it all")
    return Choice(before.values + now.values, now.negated)


def _example(field: str) -> str:
    return {"status": "status:failed", "type": "type:email", "queue": "queue:default", "node": "node:node-1"}[field]

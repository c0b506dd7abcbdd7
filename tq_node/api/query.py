"""Query parameters: structs that validate them, and that ``openapi`` publishes.

A parameter that is unknown, given twice or invalid is refused by name. An empty filter or cursor
counts as not given, so that a script may leave its variable empty. What is not given is UNSET and
not None, for which ``convert`` would accept the text ``null``."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tq_node import limits
from tq_node.api.access.access import Caller
from tq_node.api.access.scope import narrowed
from tq_node.api.http.exchange import Exchange
from tq_node.api.names import NAME_PATTERN, is_shown
from tq_node.api.requests import RUN_AT_S_MAX, TASK_ID_PATTERN
from tq_node.errors import BadParameter
from tq_node.facade import ListQuery
from tq_node.types import STATE_LABELS, STATE_OF_LABEL, WAIT_KINDS, State

P = TypeVar("P", bound=msgspec.Struct)

_state = "|".join(STATE_LABELS)
States = Annotated[
    str,
    Meta(pattern=f"^(!?({_state})(,({_state}))*)?$", description="comma list of states; a leading ! takes all others"),
]
Words = Annotated[str, Meta(description="comma list; a leading ! takes all others", examples=["a,b", "!a"])]
TaskIdParam = Annotated[str, Meta(pattern=TASK_ID_PATTERN)]
QueueParam = Annotated[str, Meta(min_length=1, max_length=limits.QUEUE_CHARS_MAX)]
NodeParam = Annotated[str, Meta(min_length=1, max_length=63, description="a node's name")]
Scope = Annotated[Literal["node", "cluster"], Meta(description="cluster: each task once, from all nodes")]


_WAITING_FOR = f"^(({'|'.join(WAIT_KINDS)})(:.*)?)?$"


class NoParameters(msgspec.Struct, forbid_unknown_fields=True):
    """No parameter is accepted."""


class TaskParameters(msgspec.Struct, forbid_unknown_fields=True):
    id: TaskIdParam

    def __post_init__(self) -> None:
        if self.id.endswith("\n"):
            raise ValueError("id: a newline at the end")  # which the pattern's $ lets pass


class StatusParameters(TaskParameters, forbid_unknown_fields=True):
    wait: Annotated[float, Meta(ge=0, le=limits.WAIT_S_MAX, description="seconds to wait for the task to be final")] = (
        0.0
    )
    consistency: Annotated[
        Literal["strong", "local"],
        Meta(
            description="local: this node's copy without proof; the answer's `age` says how old it may be, in seconds"
        ),
    ] = "strong"


class ListParameters(msgspec.Struct, forbid_unknown_fields=True):
    status: States | UnsetType = UNSET
    type: Words | UnsetType = UNSET
    queue: Words | UnsetType = UNSET
    node: Words | UnsetType = UNSET
    q: Annotated[str, Meta(description="text in id or type, in either case")] | UnsetType = UNSET
    sort: Literal["id", "-id", "created_at", "-created_at", "run_at", "-run_at", "priority", "-priority"] = "id"
    role: Literal["primary", "replica"] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=limits.LIST_LIMIT_MAX)] = limits.LIST_LIMIT_DEFAULT
    cursor: Annotated[str, Meta(description="`next` of the page before, with the same parameters")] | UnsetType = UNSET
    scope: Scope = "node"
    waiting_for: (
        Annotated[
            str,
            Meta(
                pattern=_WAITING_FOR,
                description="`kind` or `kind:name`: tasks that wait for that; a page may be short while `next` stands",
                examples=["no_handler", "queue_paused:mail"],
            ),
        ]
        | UnsetType
    ) = UNSET


class ScopeParameters(msgspec.Struct, forbid_unknown_fields=True):
    scope: Scope = "node"


class ResumeParameters(msgspec.Struct, forbid_unknown_fields=True):
    """A queue or a type, not both."""

    queue: QueueParam | UnsetType = UNSET
    type: Annotated[str, Meta(min_length=1, max_length=limits.TASK_TYPE_CHARS_MAX)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.queue is UNSET) is (self.type is UNSET):
            raise ValueError("queue: is required, or type in its place")

    @property
    def place(self) -> tuple[str, str]:
        """``queue`` or ``type``, and its name."""
        return ("type", self.type) if self.queue is UNSET else ("queue", self.queue)  # type: ignore[return-value]


class PauseParameters(msgspec.Struct, forbid_unknown_fields=True):
    """A queue or a type. Control characters are refused; what is paused under some can resume."""

    queue: (
        Annotated[
            str, Meta(min_length=1, max_length=limits.QUEUE_CHARS_MAX, extra_json_schema={"pattern": NAME_PATTERN})
        ]
        | UnsetType
    ) = UNSET
    type: (
        Annotated[
            str, Meta(min_length=1, max_length=limits.TASK_TYPE_CHARS_MAX, extra_json_schema={"pattern": NAME_PATTERN})
        ]
        | UnsetType
    ) = UNSET
    reason: Annotated[
        str,
        Meta(
            max_length=limits.PAUSE_REASON_CHARS_MAX,
            extra_json_schema={"pattern": NAME_PATTERN},
            description="for people",
        ),
    ] = ""
    until: (
        Annotated[datetime, Meta(tz=True, description="RFC 3339, or Unix seconds; goes on by itself then")]
        | Annotated[float, Meta(ge=0, le=RUN_AT_S_MAX)]
        | UnsetType
    ) = UNSET

    def __post_init__(self) -> None:
        if (self.queue is UNSET) is (self.type is UNSET):
            raise ValueError("queue: is required, or type in its place")
        for name in ("queue", "type", "reason"):
            text = getattr(self, name)
            if text is not UNSET and not is_shown(text):
                raise ValueError(f"{name}: control characters and marks of direction are not allowed")

    @property
    def place(self) -> tuple[str, str]:
        """``queue`` or ``type``, and its name."""
        return ("type", self.type) if self.queue is UNSET else ("queue", self.queue)  # type: ignore[return-value]

    def until_us(self, now_us: int) -> int | None:
        """When it ends, wall clock; None: not by itself; raises ``BadParameter``: it has ended."""
        if self.until is UNSET:
            return None
        until_s = self.until.timestamp() if isinstance(self.until, datetime) else self.until
        if until_s * 1e6 <= now_us:
            raise BadParameter("until: this time is over")
        return round(until_s * 1e6)


class NodeParameters(msgspec.Struct, forbid_unknown_fields=True):
    node: NodeParam


class RecoverParameters(msgspec.Struct, forbid_unknown_fields=True):
    partition: Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]
    node: NodeParam


class _Cursor(msgspec.Struct, array_like=True):
    sort: str
    value: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    id: str


def read_query(request: Exchange, kind: type[P]) -> P:
    """The request's parameters, validated; raises ``BadParameter``, which names the parameter."""
    given: dict[str, str] = {}
    for raw_name, raw_values in (request.args or {}).items():
        try:
            name = raw_name.decode("utf-8")
            given[name] = raw_values[0].decode("utf-8")
        except UnicodeDecodeError:
            raise BadParameter(f"{raw_name[:100].decode('latin-1')}: not UTF-8") from None
        if len(raw_values) > 1:
            raise BadParameter(f"{name[:100]}: given more than once")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as why:
        raise _refusal(given, kind, why) from None


def _refusal(given: dict[str, str], kind: type[P], why: Exception) -> BadParameter:
    """The error that names the wrong parameter, looked for one by one."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in given:
        if name not in fields:
            known = ", ".join(fields) or "none are taken here"
            return BadParameter(f"{name[:100]}: there is no such parameter ({known})")
    for name, field in fields.items():
        if name not in given:
            if field.required:
                return BadParameter(f"{name}: is required")
            continue
        try:
            msgspec.convert(given[name], field.type, strict=False)
        except msgspec.ValidationError as wrong:
            return BadParameter(f"{name}: {str(wrong)[:200].replace('Expected', 'expected', 1)}")
    return BadParameter(str(why)[:200])


def to_list_query(sent: ListParameters) -> ListQuery:
    """The list query; raises ``BadParameter``: an unknown state, a cursor of another ``sort``."""
    states = None
    names, states_not = _words(sent.status)
    if names is not None:
        if not names <= STATE_OF_LABEL.keys():
            raise BadParameter(f"status: a comma list of {', '.join(STATE_LABELS)} is expected")
        states = frozenset(int(STATE_OF_LABEL[name]) for name in names)
    types, types_not = _words(sent.type)
    queues, queues_not = _words(sent.queue)
    nodes, nodes_not = _words(sent.node)
    return ListQuery(
        states=states,
        states_not=states_not,
        types=types,
        types_not=types_not,
        queues=queues,
        queues_not=queues_not,
        nodes=nodes,
        nodes_not=nodes_not,
        text=sent.q or None,
        role=sent.role or None,
        sort=sent.sort.removeprefix("-"),
        descending=sent.sort.startswith("-"),
        cursor=_read_cursor(sent.cursor, sent.sort) if sent.cursor else None,
        limit=sent.limit,
        cluster=sent.scope == "cluster",
        waiting=_waiting(sent.waiting_for),
    )


def _waiting(text: str | UnsetType) -> tuple[str, str] | None:
    if not text:
        return None
    kind, _, name = text.partition(":")
    return kind, name


def only_dead(query: ListQuery) -> ListQuery | None:
    """The query, narrowed to failed tasks; None if its states exclude them."""
    if query.states is not None and (State.FAILED in query.states) is query.states_not:
        return None
    return msgspec.structs.replace(query, states=frozenset({int(State.FAILED)}), states_not=False)


def only_its_queues(query: ListQuery, caller: Caller) -> ListQuery | None:
    """The query, narrowed to queues of which the caller may know; None if it names none of them."""
    if caller.queues is None:
        return query
    queues, inverse = narrowed(caller, query.queues, query.queues_not)
    return msgspec.structs.replace(query, queues=queues, queues_not=inverse) if queues else None


def write_cursor(place: tuple[int, str] | None, query: ListQuery) -> str | None:
    """The cursor for ``next``: URL-safe base64 of sort order and place; None at the end."""
    if place is None:
        return None
    sort = "-" + query.sort if query.descending else query.sort
    packed = msgspec.json.encode(_Cursor(sort, place[0], place[1]))
    return urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")


def _read_cursor(text: str, sort: str) -> tuple[int, str]:
    try:
        packed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        cursor = msgspec.json.decode(packed, type=_Cursor)
    except (ValueError, binascii.Error):
        raise BadParameter("cursor: not one that a list has given out") from None
    if cursor.sort != sort:
        raise BadParameter(f"cursor: belongs to a list with sort={cursor.sort[:20]}")
    return cursor.value, cursor.id


def _words(text: str | UnsetType) -> tuple[frozenset[str] | None, bool]:
    """The words of a comma list (None: no list), and whether a leading ``!`` inverts it."""
    if not text:
        return None, False
    inverse = text.startswith("!")
    words = frozenset(word for word in text.removeprefix("!").split(",") if word)
    return (words, inverse) if words else (None, False)

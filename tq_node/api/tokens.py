"""``/tokens/…``: makes, lists and ends access tokens. A token is answered once; its hash never."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred

from tq_node import errors, limits
from tq_node.api.access.access import Access
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.media import refuse_encoded, takes_lines
from tq_node.api.json_pointer import refusal
from tq_node.api.names import refuse_unshown
from tq_node.api.problems import PeerUnreachable
from tq_node.api.query import NoParameters, read_query
from tq_node.api.requests import QueueText, Whole
from tq_node.api.responses import time_text
from tq_node.api.routes import Answer, Route
from tq_node.errors import BodyTooLarge, Denied, InvalidField, NoSuchToken
from tq_node.facade import TaskQueue
from tq_node.observe.log import EventLog
from tq_node.tokens import NAME_PATTERN, SECRET_BYTES, Quotas, Role, TokenEntry, encode, hash_of, is_name

_log = EventLog("taskqueue.tokens")
_BODY_BYTES_MAX = limits.LARGE_BODY_BYTES
"""The longest that is valid has half of it."""

TokenName = Annotated[str, Meta(pattern=f"^{NAME_PATTERN}$")]
_UNIQUE = {"uniqueItems": True}
_Bound = Annotated[Whole, Meta(ge=0, le=limits.TOKEN_QUOTA_MAX)]


class QuotaFields(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Bounds of one token, besides those of every caller."""

    requests: Annotated[float, Meta(ge=0, le=limits.TOKEN_QUOTA_MAX, description="a second, at each node")] | None = (
        None
    )
    connections: _Bound | None = None
    streams: _Bound | None = None
    waits: _Bound | None = None
    open_tasks: _Bound | None = None
    queues: _Bound | None = None


class PutTokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A token to be made. One that has its name ends with it."""

    name: TokenName
    roles: Annotated[list[Role], Meta(min_length=1, max_length=len(Role), extra_json_schema=_UNIQUE)]
    queues: (
        Annotated[
            list[QueueText],
            Meta(
                max_length=limits.TOKEN_QUEUES_MAX,
                description="only their tasks; not given: any",
                extra_json_schema=_UNIQUE,
            ),
        ]
        | None
    ) = None
    expires_in: (
        Annotated[float, Meta(gt=0, le=limits.TOKEN_EXPIRES_S_MAX, description="seconds; not given: never")] | None
    ) = None
    quotas: QuotaFields | None = None


class TokenMade(msgspec.Struct):
    """``token`` is told here and nowhere else."""

    success: bool
    name: str
    token: str

    def __repr__(self) -> str:
        """Excludes the token: this could end up in a log."""
        return f"TokenMade({self.name!r})"


class TokenOut(msgspec.Struct, frozen=True):
    """A token without itself and its hash. ``queues`` null: any; ``expires_at`` null: never."""

    name: str
    roles: tuple[Role, ...]
    queues: tuple[str, ...] | None
    created_at: str | None
    created_by: str | None
    expires_at: str | None
    quotas: QuotaFields
    kept_in: str
    """``table``, the cluster's, or ``file``, this node's."""


class TokensAnswer(msgspec.Struct):
    """``checked``: callers need a token. ``fresh``: a majority has confirmed the table of late."""

    tokens: list[TokenOut]
    checked: bool
    fresh: bool


class TokenEnded(msgspec.Struct):
    success: bool
    name: str


class TokenParameters(msgspec.Struct, forbid_unknown_fields=True):
    name: TokenName


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PutTokenRequest).decode
_CHANGE_ERRORS = (
    errors.ClusterRefused,
    errors.NotReady,
    errors.Draining,
    errors.NoController,
    errors.Upgrading,
    PeerUnreachable,
    errors.OutcomeUnknown,
)


class TokenRoutes:
    """Routes below ``/tokens``."""

    def __init__(self, queue: TaskQueue, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._queue = queue
        self._random_bytes = random_bytes

    def put(self, request: Exchange) -> Deferred[None]:
        read_query(request, NoParameters)
        token = encode(self._random_bytes(SECRET_BYTES))
        entry = self._entry(_sent(request), request, hash_of(token))
        request.changed = _granted(entry)
        _refuse_wider(entry, request)
        known = next((known for known in self._queue.token_table().tokens if known.name == entry.name), None)
        if known is not None:
            _refuse_wider(known, request)

        def made(_: None) -> None:
            request.server.authenticator.forget()
            self._look_for_admin(request)
            request.answer(200, _encode(TokenMade(True, entry.name, token)))

        return self._queue.put_token(entry).addCallback(made)

    def _entry(self, sent: PutTokenRequest, request: Exchange, hash_: bytes) -> TokenEntry:
        if is_name(sent.name) is None:
            raise InvalidField("name: a newline at the end", field="/name")  # which the pattern's $ lets pass
        _refuse_doubles("roles", sent.roles)
        _refuse_doubles("queues", sent.queues or [])
        for place, queue in enumerate(sent.queues or ()):
            refuse_unshown(str(place), queue, "/queues")
        now_us = int(request.server.now_s() * 1e6)
        return TokenEntry(
            sent.name,
            hash_,
            tuple(role for role in Role if role in sent.roles),
            None if sent.queues is None else tuple(sent.queues),
            None if sent.expires_in is None else now_us + round(sent.expires_in * 1e6),
            _quotas(sent.quotas),
            now_us,
            request.caller.name,
        )

    def show(self, request: Exchange) -> None:
        read_query(request, NoParameters)
        table = self._queue.token_table()
        kept = [*((entry, "table") for entry in table.tokens), *((entry, "file") for entry in table.of_file)]
        shown = [_out(entry, where) for entry, where in kept if _is_within(entry, request)]
        request.answer(200, _encode(TokensAnswer(shown, table.is_checked, table.is_fresh)))

    def revoke(self, request: Exchange) -> Deferred[None]:
        name = read_query(request, TokenParameters).name
        table = self._queue.token_table()
        known = next((entry for entry in table.tokens if entry.name == name), None)
        if known is not None and not _is_within(known, request):
            raise NoSuchToken(f"there is no token {name}")
        if known is None and any(entry.name == name for entry in table.of_file):
            raise NoSuchToken(f"token {name} is in this node's tokens file: take it out there")

        def ended(_: None) -> None:
            request.server.authenticator.forget()
            self._look_for_admin(request)
            request.answer(200, _encode(TokenEnded(True, name)))

        return self._queue.revoke_token(name, request.caller.name).addCallback(ended)

    def _look_for_admin(self, request: Exchange) -> None:
        table, now_us = self._queue.token_table(), request.server.now_s() * 1e6
        if not any(
            Role.ADMIN in entry.roles and (entry.expires_us is None or entry.expires_us > now_us)
            for entry in (*table.tokens, *table.of_file)
        ):
            _log.warn(
                "no_admin",
                "no token known here has the role admin: the next one can be made only with one of a --tokens-file",
            )

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/tokens/put",
                Access.ADMIN,
                self.put,
                "Make an access token; from the first one on callers need one, for ever",
                {200: Answer("the token, told this once", TokenMade)},
                bodies={"application/json": PutTokenRequest},
                errors=(
                    errors.Denied,
                    errors.BodyTooLarge,
                    errors.NotJson,
                    errors.UnknownField,
                    errors.MissingField,
                    errors.InvalidField,
                    *_CHANGE_ERRORS,
                ),
            ),
            Route(
                "GET",
                "/tokens/list",
                Access.ADMIN,
                self.show,
                "The access tokens, without themselves and their hashes",
                {200: Answer("of the cluster's table, then of this node's file", TokensAnswer)},
            ),
            Route(
                "POST",
                "/tokens/revoke",
                Access.ADMIN,
                self.revoke,
                "End an access token; every node that reaches a majority knows within a second",
                {200: Answer("it has ended", TokenEnded)},
                query=TokenParameters,
                errors=(errors.NoSuchToken, *_CHANGE_ERRORS),
            ),
        ]


def _sent(request: Exchange) -> PutTokenRequest:
    body = request.body()
    takes_lines(request.getHeader(b"content-type") or b"application/json", body, ndjson=False)
    refuse_encoded(request.getHeader(b"content-encoding"))
    if len(body) > _BODY_BYTES_MAX:
        raise BodyTooLarge(f"a body of {len(body)} bytes; at most {_BODY_BYTES_MAX} describe a token")
    try:
        return _decode(body)
    except (ValueError, RecursionError) as why:
        raise refusal(body, PutTokenRequest, why) from None


def _quotas(sent: QuotaFields | None) -> Quotas:
    if sent is None:
        return Quotas()
    bounds = msgspec.structs.asdict(sent)
    requests = bounds.pop("requests")
    return Quotas(requests, **{name: None if value is None else int(value) for name, value in bounds.items()})


def _refuse_doubles(field: str, values: list[Any]) -> None:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise InvalidField(f"{field}: {value!s} is there twice", field=f"/{field}/{place}")


def _is_within(entry: TokenEntry, request: Exchange) -> bool:
    """Whether the token gives nothing beyond the queues that the caller's token is narrowed to."""
    own = request.caller.queues
    return own is None or (entry.queues is not None and own.issuperset(entry.queues))


def _granted(entry: TokenEntry) -> tuple[str, ...]:
    """What the audit log says of a token: its name, roles and queues."""
    queues = () if entry.queues is None else (f"queues={','.join(entry.queues)}",)
    return (entry.name, f"roles={','.join(entry.roles)}", *queues)


def _refuse_wider(entry: TokenEntry, request: Exchange) -> None:
    if not _is_within(entry, request):
        raise Denied("a token that is narrowed to queues makes and replaces only tokens that are narrowed to these")


def _out(entry: TokenEntry, kept_in: str) -> TokenOut:
    return TokenOut(
        entry.name,
        entry.roles,
        entry.queues,
        time_text(entry.created_us) if entry.created_us else None,
        entry.created_by or None,
        None if entry.expires_us is None else time_text(entry.expires_us),
        QuotaFields(**msgspec.structs.asdict(entry.quotas)),
        kept_in,
    )

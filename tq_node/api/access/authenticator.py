"""Who calls, and whether it may: from the ``Authorization`` header, the tokens known here, and the
time. Pure: tokens and time come from callables.

A token is found by its SHA-256. Nobody can choose a hash, so how long the search takes says nothing
of the tokens kept; what is found is compared in constant time all the same."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tq_node import limits
from tq_node.api.access.access import ACCESS_OF, UNCHECKED, Access, Caller
from tq_node.errors import Denied, NotReady, TaskQueueError, Unauthorized
from tq_node.tokens import TOKEN_CHARS, Role, TokenEntry, hash_of, is_well_formed

ANONYMOUS = Caller("", frozenset(), frozenset({Access.OPEN}))
"""Who shows no valid token, where tokens are checked."""
LEAST_ROLE = {access: next((role for role in Role if access in ACCESS_OF[role]), Role.ADMIN) for access in Access}
"""The role that a refusal names as missing: of those that would do, the one that may least."""
_credentials = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?: +(.*))?", re.DOTALL).fullmatch
"""A scheme and what follows it (RFC 9110, 11.4)."""


class TokenTable(Protocol):
    """The tokens that this node knows; the same object while nothing of it changes."""

    @property
    def tokens(self) -> Sequence[TokenEntry]:
        """Of the cluster's table."""

    @property
    def of_file(self) -> Sequence[TokenEntry]:
        """Of this node's tokens file."""

    @property
    def is_fresh(self) -> bool:
        """Whether ``tokens`` count: proven fresh since the start, and a leader heard of late."""

    @property
    def is_checked(self) -> bool:
        """Whether callers need a token."""


class Authenticator:
    """Finds the caller of a header; remembers those found until tokens or freshness change."""

    def __init__(self, table: Callable[[], TokenTable], now_s: Callable[[], float]) -> None:
        """:param now_s: wall clock."""
        self._table = table
        self.now_s = now_s
        self._seen: TokenTable | None = None
        """What ``_entries`` was made from."""
        self._entries: dict[bytes, TokenEntry] = {}
        """Valid tokens by hash; of the table only while it is fresh."""
        self._is_checked = True
        self._is_fresh = False
        self.callers: dict[bytes | None, Caller] = {}
        """Callers found, by header, in the time from ``from_s`` until ``until_s``. A hot request is
        looked up here without a call."""
        # Both ends of the time for which they hold: a clock that is set back ends it, too.
        self.from_s = self.until_s = 0.0

    def caller_of(self, authorization: bytes | None, access: Access) -> Caller | TaskQueueError:
        """The caller that sends this header, if it may do what is asked; else the refusal.

        ``Unauthorized``: no valid token. ``Denied``: none of its roles allows it. ``NotReady``: it
        may be a token of the table, which is not proven fresh."""
        now_s = self.now_s()
        if not self.from_s <= now_s < self.until_s:
            self._look(now_s)
        caller = self.callers.get(authorization)
        if caller is None:
            if not self._is_checked:
                return self._remember(authorization, UNCHECKED)
            found = self._find(authorization, now_s)
            if isinstance(found, TaskQueueError):
                return ANONYMOUS if access is Access.OPEN else found
            caller = found
        if access in caller.may:
            return caller
        role = LEAST_ROLE[access]
        return Denied(f"the role {role} is missing; {caller.name} has {_listed(caller.roles)}")

    def identified(self, authorization: bytes | None) -> Caller:
        """Who sends this header, as last found by ``caller_of``, whatever it may."""
        return self.callers.get(authorization, ANONYMOUS) if self._is_checked else UNCHECKED

    def forget(self) -> None:
        """Look at the tokens again with the next request: they have just changed."""
        self.until_s = self.from_s

    def _look(self, now_s: float) -> None:
        """Take up what has changed in the tokens, and drop every caller whose time is over."""
        table = self._table()
        if table is not self._seen:
            self._seen = table
            self._is_fresh = table.is_fresh
            self._is_checked = table.is_checked
            of_table = table.tokens if table.is_fresh else ()
            self._entries = {entry.hash: entry for entry in (*of_table, *table.of_file)}
            self.callers.clear()
        self.from_s, self.until_s = now_s, now_s + limits.TOKENS_LOOK_S
        for authorization, caller in list(self.callers.items()):
            if caller.expires_us is not None:
                if caller.expires_us <= now_s * 1e6:
                    del self.callers[authorization]
                else:
                    self.until_s = min(self.until_s, caller.expires_us / 1e6)

    def _find(self, authorization: bytes | None, now_s: float) -> Caller | TaskQueueError:
        if authorization is None:
            return Unauthorized("a token is needed: Authorization: Bearer tq_…", reason="missing")
        match = _credentials(authorization)
        if match is None or match[1].lower() != b"bearer":
            return Unauthorized("tokens are taken as Authorization: Bearer tq_…, and no other scheme", reason="scheme")
        shown = match[2] or b""
        token = shown.decode("latin-1") if len(shown) == TOKEN_CHARS else ""
        if not is_well_formed(token):
            return Unauthorized("this is no token: its length, its characters or its checksum", reason="malformed")
        hash_ = hash_of(token)
        entry = self._entries.get(hash_)
        if entry is None and self._table() is not self._seen:
            self._look(now_s)  # it may have been made since the last look
            entry = self._entries.get(hash_)
        if entry is None or not hmac.compare_digest(entry.hash, hash_):
            if not self._is_fresh:
                return NotReady("this node can't tell whether the token is still valid: it hears no leader")
            return Unauthorized("the token is unknown, or was revoked", reason="unknown")
        caller = caller_with(entry)
        if caller.expires_us is not None:
            if caller.expires_us <= now_s * 1e6:
                return Unauthorized("the token has expired", reason="expired")
            self.until_s = min(self.until_s, caller.expires_us / 1e6)
        return self._remember(authorization, caller)

    def _remember(self, authorization: bytes | None, caller: Caller) -> Caller:
        if len(self.callers) >= limits.CALLERS_CACHED_MAX:
            self.callers.clear()
        self.callers[authorization] = caller
        return caller


def caller_with(entry: TokenEntry) -> Caller:
    """The caller that shows the token of this entry."""
    return Caller(
        entry.name,
        frozenset(entry.roles),
        frozenset().union(*(ACCESS_OF[role] for role in entry.roles)),
        None if entry.queues is None else frozenset(entry.queues),
        entry.quotas,
        entry.expires_us,
    )


def _listed(roles: Iterable[Role]) -> str:
    return ", ".join(role for role in Role if role in roles) or "no role"

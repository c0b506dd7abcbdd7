"""Tokens of a cluster and of a file, kept in memory: what a node's authenticator looks at."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import msgspec

from tq_node.facade import TokenTable
from tq_node.tokens import Role, TokenEntry, encode, hash_of


def token_of(number: int) -> str:
    """A valid token, the same for the same number."""
    return encode(number.to_bytes(32, "big"))


class TokenKeeper(Protocol):
    """A ``MemoryQueue``, for one."""

    tokens: TokenTable


class MemoryTokens:
    """Makes tokens, and puts them into the table that its keeper has."""

    def __init__(self, keeper: TokenKeeper | None = None) -> None:
        self._keeper: TokenKeeper = keeper or SimpleNamespace(tokens=TokenTable())
        self.on_change: Callable[[], None] = lambda: None
        self.set(is_fresh=True)
        self._made = 0

    @property
    def table(self) -> TokenTable:
        return self._keeper.tokens

    def set(self, **fields: Any) -> None:
        """Change fields of the table."""
        table = self._keeper.tokens
        self._keeper.tokens = msgspec.structs.replace(table, **{"version": table.version + 1, **fields})
        self.on_change()

    def make(self, *roles: Role, name: str = "", in_file: bool = False, **fields: Any) -> str:
        """A new token with these roles; what its owner is told."""
        self._made += 1
        token = token_of(self._made)
        entry = TokenEntry(name or f"token-{self._made}", hash_of(token), roles, **fields)
        if in_file:
            self.set(of_file=(*self.table.of_file, entry), is_checked=True)
        else:
            self.set(tokens=(*self.table.tokens, entry), is_checked=True)
        return token

    def revoke(self, name: str) -> None:
        self.set(tokens=tuple(entry for entry in self.table.tokens if entry.name != name))

"""Tokens of a cluster and of a file, kept in memory: what a node's authenticator looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tq_node.tokens import Role, TokenEntry, encode, hash_of


def token_of(number: int) -> str:
    """A valid token, the same for the same number."""
    return encode(number.to_bytes(32, "big"))


class MemoryTokens:
    """A ``TokenTable``; ``file``: tokens of ``--tokens-file``, None without one."""

    def __init__(self) -> None:
        self.tokens: tuple[TokenEntry, ...] = ()
        self.is_fresh = True
        self.is_checked = False
        self.version = 0
        self.file: Sequence[TokenEntry] | None = None
        self._made = 0

    def make(self, *roles: Role, name: str = "", in_file: bool = False, **fields: Any) -> str:
        """A new token with these roles; what its owner is told."""
        self._made += 1
        token = token_of(self._made)
        entry = TokenEntry(name or f"token-{self._made}", hash_of(token), roles, **fields)
        if in_file:
            self.file = (*(self.file or ()), entry)
        else:
            self.tokens = (*self.tokens, entry)
            self.is_checked = True
            self.version += 1
        return token

    def revoke(self, name: str) -> None:
        self.tokens = tuple(entry for entry in self.tokens if entry.name != name)
        self.version += 1

"""Rules of access tokens in the cluster map (section 12 of the contract)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tq_node.cluster.commands import PutToken, RevokeToken
from tq_node.cluster.map_edit import MapEdit
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import are_tokens_few, is_token_sound
from tq_node.tokens import TokenEntry


def put(edit: MapEdit, command: PutToken) -> None:
    """Keep a token. A second put of a name takes the place of the first: its caller may not have
    had the answer to that one, which alone had the token."""
    entry = command.entry
    others = tuple(token for token in edit.before.tokens if token.name != entry.name)
    tokens = tuple(sorted((*others, entry), key=lambda token: token.name))
    if not is_token_sound(entry) or is_hash_taken(others, entry):
        edit.refuse(Refusal.BAD_SETTINGS)
    elif not are_tokens_few(tokens):
        edit.refuse(Refusal.TOO_MANY)
    elif tokens != edit.before.tokens:
        edit.set(tokens=tokens, tokens_seen=True)
        edit.note_token(entry.name)


def is_hash_taken(others: Sequence[TokenEntry], entry: TokenEntry) -> bool:
    """Whether another name has the same token: a caller that shows it would be either of them."""
    return any(token.hash == entry.hash for token in others)


def revoke(edit: MapEdit, command: RevokeToken) -> None:
    tokens = tuple(token for token in edit.before.tokens if token.name != command.name)
    if len(tokens) == len(edit.before.tokens):
        edit.refuse(Refusal.NOT_NEEDED)
    else:
        edit.set(tokens=tokens)
        edit.note_token(command.name)


TOKEN_RULES: dict[type, Callable[[MapEdit, Any], None]] = {PutToken: put, RevokeToken: revoke}

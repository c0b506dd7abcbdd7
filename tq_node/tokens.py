"""Access tokens as all rooms see them: format, roles, entries of the table, who asks for something.

A token is ``tq_``, 43 characters of base62 (256 random bits) and 6 of its CRC-32: a typing error is
told from a token that was revoked without a look at any table. Only the SHA-256 of a token is kept
anywhere."""

from __future__ import annotations

import enum
import hashlib
import re
import string
import zlib

import msgspec

PREFIX = "tq_"
SECRET_BYTES = 32
HASH_BYTES = 32
_SECRET_CHARS = 43
_CHECKSUM_CHARS = 6
TOKEN_CHARS = len(PREFIX) + _SECRET_CHARS + _CHECKSUM_CHARS
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


class Role(enum.StrEnum):
    """What a token may do (section 12 of the contract); a token has one or several."""

    # Names are part of the on-disk format. A further one needs a feature level of its own: a node
    # that does not know a role can't read the table (F44).

    VIEW = "view"
    """See lists, stats, cluster and events, without what tasks carry: payloads, results, logs."""
    READ = "read"
    """Read everything but tokens, the audit log and the worker API."""
    SUBMIT = "submit"
    """Submit, and see and cancel what this token submitted."""
    WORK = "work"
    """Claim and end attempts; submit what its handlers submit."""
    OPERATE = "operate"
    """All of the above, and change tasks, queues and workers."""
    ADMIN = "admin"
    """Everything."""


class Quotas(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Bounds of one token; None: only those of every caller."""

    requests: float | None = None
    """Requests a second, at each node."""
    connections: int | None = None
    streams: int | None = None
    waits: int | None = None
    """Requests that wait for a task to end."""
    open_tasks: int | None = None
    """Tasks of its own that have not ended, over the cluster."""
    queues: int | None = None
    """Queues in which it has open tasks."""


class TokenEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A token as the table and the tokens file keep it. Its fields are as those of the cluster
    map's records: a further one needs a feature level (F44)."""

    name: str
    hash: bytes
    """SHA-256 of the whole token."""
    roles: tuple[Role, ...]
    queues: tuple[str, ...] | None = None
    """The token's tasks are those of these queues; None: of any."""
    expires_us: int | None = None
    """Wall clock; None: never."""
    quotas: Quotas = Quotas()
    created_us: int = 0
    created_by: str = ""
    """Name of the token that asked for it; empty: nobody had to prove anything."""


class Asker(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Who asks for a change of a task or the cluster, as far as its primary has to know."""

    name: str
    """Of the token."""
    queues: tuple[str, ...] | None = None
    """As ``TokenEntry.queues``."""
    own_only: bool = False
    """It may see and change what it submitted itself, and nothing else."""

    @property
    def is_restricted(self) -> bool:
        """Whether there are tasks that it may not know of."""
        return self.own_only or self.queues is not None

    def may_know(self, queue: str, made_by: str) -> bool:
        """Whether it may know of a task of this queue, submitted by the token of that name."""
        if self.own_only and made_by != self.name:
            return False
        return self.queues is None or queue in self.queues


NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
is_name = re.compile(NAME_PATTERN).fullmatch
"""The match if a text may be the name of a token: it stands in logs, lists and rows."""


def encode(secret: bytes) -> str:
    """The token of 32 random bytes."""
    assert len(secret) == SECRET_BYTES
    body = PREFIX + _base62(int.from_bytes(secret, "big"), _SECRET_CHARS)
    return body + _checksum(body)


def is_well_formed(token: str) -> bool:
    """Whether it has the form of a token and its checksum is right."""
    body = token[:-_CHECKSUM_CHARS]
    return (
        len(token) == TOKEN_CHARS and token.startswith(PREFIX) and token.isascii() and token == body + _checksum(body)
    )


def hash_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)


def _base62(number: int, chars: int) -> str:
    digits = []
    for _ in range(chars):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    assert not number
    return "".join(reversed(digits))

"""Lines of the audit log as all rooms see them: their form, the chain that they make, its proof.

Each line has in ``prev`` the SHA-256 of the line before. So who takes out, adds or changes a line
has to write all later ones anew, and is found by whoever has kept the hash of one of these."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import msgspec

from tq_node import limits

GENESIS = "0" * 64
"""``prev`` of the first line of all."""
LINE_BYTES_MAX = 64 * 1024
"""No line that a node writes is longer; what is, is none."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # naive on purpose: it spares isoformat the offset, which is always Z
_hide_tokens = re.compile(r"tq_[0-9A-Za-z]{8,}").sub
_forgotten = re.compile(r"\bends with ([0-9a-f]{64})\Z").search


class AuditRecord(msgspec.Struct, frozen=True, gc=False):
    """One thing that was asked of a node, before it is a line.

    Nothing of a body is in it but ids and names. What a caller chose may hold a token by mistake:
    ``encode`` hides whatever looks like one."""

    at_us: int
    request_id: bytes = b""
    token: str = ""
    """Name of the caller's token; empty: it showed none that is known, or none is checked."""
    host: str = ""
    """Address of the caller; empty, as are method and path: the log says something of itself."""
    method: bytes = b""
    path: bytes = b""
    """Without its query."""
    what: str = ""
    """What it is about: ids and names, or the query."""
    outcome: int = 0
    """The status of the answer; 499: the client hung up before, and it may have been done; 0: the
    log says something of itself."""

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return 200 + len(self.request_id) + len(self.path) + len(self.what)


class AuditLine(msgspec.Struct, forbid_unknown_fields=True):
    """A record as it is written, one line of JSON (section 12 of the contract)."""

    at: str
    request_id: str
    token: str
    host: str = msgspec.field(name="from")
    method: str
    path: str
    what: str
    outcome: int
    node: str
    prev: str


_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(AuditLine).decode


def encode(record: AuditRecord, node: str, prev: str) -> bytes:
    """The line of a record, without its newline.

    :param prev: the hash of the line before."""
    return _to_json(
        AuditLine(
            instant(record.at_us),
            _shown(record.request_id),
            record.token,
            record.host,
            _shown(record.method),
            _shown(record.path),
            _without_tokens(record.what),
            record.outcome,
            node,
            prev,
        )
    )


def decode(line: bytes) -> AuditLine | None:
    """What a line says; None: it is not one of ours."""
    try:
        return _from_json(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def hash_of(line: bytes) -> str:
    """What the next line has in ``prev``. ``line`` is without its newline."""
    return hashlib.sha256(line).hexdigest()


def instant(at_us: int) -> str:
    """RFC 3339 in UTC with microseconds: as text in the order of time."""
    seconds, us = divmod(at_us, 1_000_000)
    return f"{_whole_second(seconds)}.{us:06}Z"


@lru_cache(maxsize=4)
def _whole_second(seconds: int) -> str:
    return (_EPOCH + timedelta(0, seconds)).isoformat()


def forgotten(name: str, last: str) -> str:
    """``what`` of the line that says that a file was deleted for its age."""
    return f"the oldest file was deleted: {name}, which ends with {last}"


def _shown(raw: bytes) -> str:
    return _without_tokens(raw.decode("latin-1"))


def _without_tokens(text: str) -> str:
    return _hide_tokens("tq_…", text) if "tq_" in text else text


class Page(NamedTuple):
    """Lines of a log that follow one another."""

    lines: list[bytes]
    """As written, without newlines; what is no line of an audit log is left out."""
    next: tuple[int, int] | None
    """Number of the file, and offset, behind the last one; None: nothing follows yet."""
    unreadable: int
    """How many were left out."""


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong with a chain."""

    place: str
    """``FILE:LINE``."""
    text: str


class Chain:
    """Follows a chain from line to line; ``findings`` says where it is broken.

    What is still left out when all lines were looked at: what came before the first line (unless
    ``is_whole``), and what may have been cut off behind the last."""

    def __init__(self) -> None:
        self.count = 0
        self.first: AuditLine | None = None
        self.last: AuditLine | None = None
        self.head = GENESIS
        """The hash of the last line."""
        self.hashes_sought: set[str] = set()
        """Hashes that a line has to have; each is dropped when it is found."""
        self._forgotten: set[str] = set()
        self._last_place = ""

    def follow(self, place: str, line: bytes) -> Iterator[Finding]:
        """Take the next line; what is wrong with it."""
        said = decode(line)
        if said is None:
            yield Finding(place, "is not a line of an audit log: it was changed, or put here")
        else:
            if self.first is None:
                self.first = said
            elif said.prev != self.head:
                yield Finding(
                    place,
                    f"does not follow {self._last_place}: lines between them were taken out or moved, or that one was changed",
                )
            self.last = said
            self._note_deletion(said)
        self.count += 1
        self.head = hash_of(line)
        self.hashes_sought.discard(self.head)
        self._last_place = place

    def _note_deletion(self, said: AuditLine) -> None:
        match = _forgotten(said.what) if not said.method and not said.host else None
        if match is not None:
            self._forgotten.add(match[1])

    @property
    def is_whole(self) -> bool:
        """Whether it begins with the first line of all, or behind a file that the log says it
        deleted."""
        return self.first is None or self.first.prev == GENESIS or self.first.prev in self._forgotten


def findings_of(chain: Chain, lines: Iterable[tuple[str, bytes]]) -> Iterator[Finding]:
    """What is wrong with these lines, each with its place, in order."""
    for place, line in lines:
        yield from chain.follow(place, line)


assert (
    6 * (limits.REQUEST_ID_CHARS_MAX + limits.AUDIT_PATH_CHARS_MAX + limits.AUDIT_WHAT_CHARS_MAX)
    < LINE_BYTES_MAX - 2_048
)
"""Six bytes for an escaped character."""

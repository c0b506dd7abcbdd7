"""The file of access tokens of one node (``--tokens-file``): TOML, written at one stroke.

    [[token]]
    name = "ops"
    hash = "sha256:…"
    roles = ["admin"]
    queues = ["mail"]                 # may be left out: any
    expires = 2030-01-31T00:00:00Z    # may be left out: never
    quotas = { requests = 50 }        # may be left out: none

It holds hashes, so who reads it can't use them; who writes it makes himself an operator."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from tq_node import limits
from tq_node.tokens import HASH_BYTES, Quotas, Role, TokenEntry, is_name

_MODES = 0o640
"""Permissions that the file may have: the owner's to read and write, the group's to read."""
_HASH = re.compile(rf"sha256:([0-9a-f]{{{2 * HASH_BYTES}}})", re.ASCII)
_BEGINS = re.compile(r"^[ \t]*\[\[[ \t]*token[ \t]*\]\]", re.MULTILINE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadTokensFile(ValueError):
    """One line that names the file and what is wrong with it."""


class _QuotaFields(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    requests: float | None = None
    connections: int | None = None
    streams: int | None = None
    waits: int | None = None
    open_tasks: int | None = None
    queues: int | None = None


class _Token(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    hash: str
    roles: list[Role]
    queues: list[str] | None = None
    expires: datetime | None = None
    quotas: _QuotaFields = _QuotaFields()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    token: list[_Token] = []


def read(path: Path) -> tuple[TokenEntry, ...]:
    """The tokens of the file; raises ``BadTokensFile``."""
    return parse(_content(path), str(path))


def parse(text: str, path: str) -> tuple[TokenEntry, ...]:
    """The tokens of the file's text.

    :param path: for the sentence that says what is wrong.
    :raises BadTokensFile:"""
    try:
        tokens = msgspec.convert(tomllib.loads(text), _File).token
    except (tomllib.TOMLDecodeError, RecursionError) as why:
        raise BadTokensFile(f"{path}: not TOML: {why}") from None
    except msgspec.ValidationError as why:
        raise BadTokensFile(f"{path}: {why}") from None
    if len(tokens) > limits.TOKENS_OF_FILE_MAX:
        raise BadTokensFile(f"{path}: {len(tokens)} tokens; a file holds at most {limits.TOKENS_OF_FILE_MAX}")
    entries: dict[str, TokenEntry] = {}
    for token in tokens:
        try:
            entry = _entry(token)
        except ValueError as why:
            raise BadTokensFile(f"{path}: token {token.name[:63]!r}: {why}") from None
        if entry.name in entries or any(entry.hash == other.hash for other in entries.values()):
            raise BadTokensFile(f"{path}: token {token.name!r}: its name or its hash is there twice")
        entries[entry.name] = entry
    return tuple(entries.values())


def with_token(path: Path, entry: TokenEntry) -> None:
    """Add a token to the file, which is made if it is missing.

    :raises BadTokensFile: the file can't be used, or has a token of that name.
    :raises OSError: it can't be written."""
    try:
        text = _content(path)
    except FileNotFoundError:
        text = ""
    if any(entry.name == known.name for known in parse(text, str(path))):
        raise BadTokensFile(f"{path}: there is a token {entry.name!r}: revoke it first")
    parted = text if not text or text.endswith("\n") else f"{text}\n"
    _write(path, f"{parted}{chr(10) if parted else ''}{written(entry)}")


def without_token(path: Path, name: str) -> None:
    """Take a token out of the file; comments elsewhere stay.

    :raises BadTokensFile: the file can't be used, or has no such token.
    :raises OSError: it can't be written."""
    text = _content(path)
    known = parse(text, str(path))
    begins = [found.start() for found in _BEGINS.finditer(text)]
    ends = [*begins[1:], len(text)]
    if len(begins) != len(known):
        raise BadTokensFile(f"{path}: its tokens are not in blocks of their own ([[token]]): edit it by hand")
    if name not in (entry.name for entry in known):
        raise BadTokensFile(f"{path}: there is no token {name!r}")
    place = next(number for number, entry in enumerate(known) if entry.name == name)
    left = text[: begins[place]] + text[ends[place] :]
    if parse(left, str(path)) != tuple(entry for entry in known if entry.name != name):
        raise BadTokensFile(f"{path}: token {name!r} can't be told from the rest: edit it by hand")
    _write(path, left)


def written(entry: TokenEntry) -> str:
    """A token as the file holds it."""
    lines = [
        "[[token]]",
        f"name = {_quoted(entry.name)}",
        f'hash = "sha256:{entry.hash.hex()}"',
        f"roles = [{', '.join(map(_quoted, entry.roles))}]",
    ]
    if entry.queues is not None:
        lines.append(f"queues = [{', '.join(map(_quoted, entry.queues))}]")
    if entry.expires_us is not None:
        at = _EPOCH + timedelta(microseconds=entry.expires_us)
        lines.append(f"expires = {at.isoformat(timespec='seconds').replace('+00:00', 'Z')}")
    bounds = [f"{name} = {value}" for name, value in msgspec.structs.asdict(entry.quotas).items() if value is not None]
    if bounds:
        lines.append(f"quotas = {{ {', '.join(bounds)} }}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's too, which wants one more character escaped.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _entry(token: _Token) -> TokenEntry:
    found = _HASH.fullmatch(token.hash)
    if is_name(token.name) is None:
        raise ValueError("is no name: 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit")
    if found is None:
        raise ValueError("its hash is not sha256: and 64 digits of 0-9 a-f")
    if not token.roles or len(set(token.roles)) < len(token.roles):
        raise ValueError("it has no role, or one of them twice")
    queues = token.queues
    if queues is not None and (
        len(queues) > limits.TOKEN_QUEUES_MAX
        or len(set(queues)) < len(queues)
        or not all(1 <= len(queue) <= limits.QUEUE_CHARS_MAX for queue in queues)
    ):
        raise ValueError(
            f"its queues are not at most {limits.TOKEN_QUEUES_MAX} different names of 1 to {limits.QUEUE_CHARS_MAX} characters"
        )
    quotas = Quotas(**msgspec.structs.asdict(token.quotas))
    if not all(number is None or 0 <= number <= limits.TOKEN_QUOTA_MAX for number in msgspec.structs.astuple(quotas)):
        raise ValueError(f"a quota is not between 0 and {limits.TOKEN_QUOTA_MAX}")
    return TokenEntry(
        token.name,
        bytes.fromhex(found[1]),
        tuple(token.roles),
        None if queues is None else tuple(queues),
        None if token.expires is None else _us(token.expires),
        quotas,
    )


def _us(at: datetime) -> int:
    if at.tzinfo is None:
        raise ValueError("expires says no zone: end it with Z")
    return max(0, (at - _EPOCH) // timedelta(microseconds=1))


def _content(path: Path) -> str:
    """:raises FileNotFoundError: there is no such file.
    :raises BadTokensFile: it can't be read, or others may change it."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            _refuse_others(path, os.fstat(file.fileno()))
            content = file.read(limits.TOKENS_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as why:
        raise BadTokensFile(f"{path}: {why.strerror}") from None
    if len(content) > limits.TOKENS_FILE_BYTES_MAX:
        raise BadTokensFile(f"{path}: more than {limits.TOKENS_FILE_BYTES_MAX} bytes: no file of tokens")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadTokensFile(f"{path}: not UTF-8") from None


def _at_once(path: str, flags: int) -> int:
    """A pipe in its place would have whoever opens it wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_others(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise BadTokensFile(f"{path}: no plain file")
    if mode & ~_MODES:
        raise BadTokensFile(
            f"{path}: its mode is {mode:04o}, which lets others than its owner at it: chmod 600 {path}, or 640"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise BadTokensFile(
            f"{path}: belongs to user {found.st_uid}, who could make tokens: chown {os.geteuid()} {path}"
        )


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a node may read it at any moment."""
    parse(text, str(path))
    with suppress(OSError):
        path = path.resolve(strict=True)  # the target of a link, not the link
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise

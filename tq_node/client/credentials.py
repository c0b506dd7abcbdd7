"""What a client shows to nodes, and which nodes it believes: token and authority."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tq_node.client import limits

TOKEN_VARIABLE = "TQ_TOKEN"  # noqa: S105 (its name)
CA_VARIABLE = "TQ_CA"


class Token:
    """A token, or the file of one: read again within ``limits.TOKEN_LOOK_S`` of a change, so that
    one token is replaced by another while calls go on.

    :raises ValueError: the file can't be read, or what is in it is no token."""

    def __init__(self, text: str, file: Path | None = None) -> None:
        self._file = file
        self._looked_s = time.monotonic()
        self._state = _state(file)
        self._header = _header(text if file is None else _read(file))

    def header(self) -> bytes:
        """The header line that shows it, with its line end."""
        if self._file is not None and time.monotonic() - self._looked_s >= limits.TOKEN_LOOK_S:
            self._looked_s = time.monotonic()
            state = _state(self._file)
            if state != self._state:
                try:
                    self._header = _header(_read(self._file))
                except ValueError:
                    return self._header  # being written, or gone: the earlier one may still do
                self._state = state
        return self._header


class Credentials(msgspec.Struct, frozen=True):
    """All that a client has of them.

    :ivar token: None: nodes ask for none.
    :ivar tls: None: neither an authority was given, nor an address that is HTTPS.
    :ivar has_authority: the authority was given, and is not that of everybody."""

    token: Token | None = None
    tls: ssl.SSLContext | None = None
    has_authority: bool = False

    def may_learn(self, *, tls: bool) -> bool:
        """Whether an address that a node has named may be used, so get the token: where there is
        none, or where the authority that was given vouches for whoever answers there. A node could
        name any address; one that only the system's authorities vouch for is anybody's."""
        context = self.tls
        if self.token is None:
            return not tls or context is not None
        is_checked = context is not None and context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
        return tls and self.has_authority and is_checked


def credentials_of(
    *,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    tls: ssl.SSLContext | bool,
    ca: str | os.PathLike[str] | None,
    is_tls_used: bool,
    environment: Mapping[str, str] = os.environ,
) -> Credentials:
    """What the arguments say; else ``TQ_TOKEN`` and ``TQ_CA``.

    :param is_tls_used: an address that was given is HTTPS.
    :raises ValueError: two of them say different things, or a file is unfit."""
    if token is not None and token_file is not None:
        raise ValueError("token and token_file: one of them")
    if ca is not None and isinstance(tls, ssl.SSLContext):
        raise ValueError("ca and a context for tls: one of them")
    if token is None and token_file is None:
        token = environment.get(TOKEN_VARIABLE) or None
    shown = None if token is None else Token(token)
    if token_file is not None:
        shown = Token("", Path(token_file))
    if isinstance(tls, ssl.SSLContext):
        return Credentials(shown, tls, has_authority=True)
    authority = ca if ca is not None else environment.get(CA_VARIABLE) or None
    context = _context(authority) if is_tls_used or authority is not None else None  # some 20 ms
    return Credentials(shown, context, has_authority=authority is not None)


def _context(authority: str | os.PathLike[str] | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as why:
        raise ValueError(f"ca {os.fspath(authority or '')!r}: holds no certificate (PEM): {why}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as why:
        raise ValueError(f"token_file {str(file)!r}: {getattr(why, 'strerror', None) or why}") from None


def _header(text: str) -> bytes:
    if not text or not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("a token has no spaces, and no letters but ASCII")
    return f"Authorization: Bearer {text}\r\n".encode("ascii")


def _state(file: Path | None) -> tuple[int, ...] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)

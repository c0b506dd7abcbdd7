"""What the console shows to nodes, and which nodes it believes."""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection
from pathlib import Path

LOOK_S = 1.0
"""Between two looks whether the file of the token has changed."""


class BadCredentials(ValueError):
    """``str()`` is one line that names the option."""


class Credentials:
    """Token and authority.

    The token is sent to the ``given`` addresses, and to others only by HTTPS and where the
    authority that was given vouches for them: whoever answers at a given one may name any other.

    :param token_file: holds the token; read again when it changes.
    :param ca: file of the authority; None: those of the system count, for given addresses alone.
    :raises BadCredentials: a file is unfit."""

    def __init__(
        self,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        ca: Path | None = None,
        given: Collection[str] = (),
    ) -> None:
        self._given = frozenset(given)
        self._token = token
        self._file = token_file
        self._looked_s = time.monotonic()
        self.tls: ssl.SSLContext | None = None
        self._state = _state(token_file)
        if token_file is not None:
            try:
                self._token = _read(token_file)
            except OSError as why:
                raise BadCredentials(f"--token-file: {str(token_file)!r}: {why.strerror}") from None
        if self._token is not None and not _is_token(self._token):
            raise BadCredentials("a token has no spaces, and no letters but ASCII")
        if ca is not None:
            try:
                self.tls = ssl.create_default_context(cafile=ca)
            except (OSError, ssl.SSLError) as why:
                raise BadCredentials(f"--ca: {str(ca)!r}: holds no certificate (PEM): {why}") from None

    def token_for(self, address: str) -> str | None:
        """What to show at an address; None: nothing."""
        if address not in self._given and not (self.tls is not None and address.startswith("https://")):
            return None
        if self._file is not None and time.monotonic() - self._looked_s >= LOOK_S:
            self._looked_s = time.monotonic()
            self._look(self._file)
        return self._token

    def _look(self, file: Path) -> None:
        state = _state(file)
        if state == self._state:
            return
        try:
            token = _read(file)
        except OSError:
            return  # the earlier one may still do
        if _is_token(token):
            self._token, self._state = token, state


def _read(file: Path) -> str:
    return file.read_text("utf-8", "replace").strip()


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _state(file: Path | None) -> tuple[int, ...] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)

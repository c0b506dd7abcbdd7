"""Parses addresses of nodes as people write them. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 8080
_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 (to be dialled, not bound)


class BadAddress(ValueError):
    """A text that is no address; the message says which part."""


class Address(NamedTuple):
    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """Identity of the node: equal for the usual names of this machine."""
        return f"127.0.0.1:{self.port}" if self.host in _LOCAL else str(self).lower()


def parse_addresses(texts: str | Iterable[str], *, tls: bool) -> list[Address]:
    """Addresses in ``localhost:8080,8081,8082``, ``HOST:PORT`` with commas or spaces, or a list of
    such; each once, in order. A bare port takes the host before it; ``https://`` means TLS, as
    ``tls`` does for all.

    :raises BadAddress: one of them is none, or there is none."""
    words = ",".join([texts] if isinstance(texts, str) else texts).replace(",", " ").split()
    host, found = DEFAULT_HOST, dict[str, Address]()
    for word in words:
        scheme, marker, plain = word.rpartition("://")
        if marker and scheme not in ("http", "https"):
            raise BadAddress(f"{word!r}: http or https")
        plain = plain.rstrip("/")
        if not plain.isdigit():
            host, plain = _host_and_port(word, plain)
        if not plain.isdigit() or not 0 < int(plain[:6]) < 65_536:
            raise BadAddress(f"{word!r}: a port is a number from 1 to 65535")
        address = Address(host, int(plain), tls or scheme == "https")
        found.setdefault(address.place, address)
    if not found:
        raise BadAddress("no address")
    return list(found.values())


def _host_and_port(word: str, plain: str) -> tuple[str, str]:
    if plain.startswith("["):
        host, _, port = plain[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = plain.partition(":")
        if ":" in port:
            raise BadAddress(f"{word!r}: write an IPv6 address in brackets, as [::1]:8080")
    if any(letter <= " " or letter in "/?#@\x7f" for letter in host):
        raise BadAddress(f"{word!r}: no host name has such letters")
    return host or DEFAULT_HOST, port or str(DEFAULT_PORT)

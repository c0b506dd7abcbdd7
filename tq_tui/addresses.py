"""PURE. Addresses as people type them, when two of them are the same, and the order of names."""

from __future__ import annotations

from collections.abc import Iterable

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 8080


class BadAddress(ValueError):
    """The text names the part that is no address."""


def parse_addresses(words: Iterable[str]) -> tuple[str, ...]:
    """``localhost:8080,8081,8082`` or ``HOST:PORT HOST:PORT``; a bare port takes the host before.
    Each once, in order; raises ``BadAddress`` if one of them is none."""
    found: list[str] = []
    host = DEFAULT_HOST
    for part in (part.strip() for word in words for part in word.split(",")):
        if not part:
            continue
        scheme, plain = _scheme(part)
        if plain.isdigit():
            port = plain
        elif plain.startswith("[") or plain.count(":") <= 1:
            host, port = _host_and_port(plain)
        else:
            raise BadAddress(f"{part!r}: write an IPv6 address in brackets, as [::1]:8080")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise BadAddress(f"{part!r}: a port is a number from 1 to 65535")
        address = f"{scheme}{host}:{int(port)}"
        if address not in found:
            found.append(address)
    return tuple(found) or (f"{DEFAULT_HOST}:{DEFAULT_PORT}",)


def _scheme(part: str) -> tuple[str, str]:
    scheme, marker, rest = part.rpartition("://")
    if not marker or scheme == "http":
        return "", rest.rstrip("/")
    if scheme != "https":
        raise BadAddress(f"{part!r}: http or https")
    return "https://", rest.rstrip("/")


def _host_and_port(plain: str) -> tuple[str, str]:
    if plain.startswith("["):
        host, _, rest = plain.partition("]")
        return f"{host}]", rest.removeprefix(":") or str(DEFAULT_PORT)
    host, _, port = plain.partition(":")
    return host or DEFAULT_HOST, port or str(DEFAULT_PORT)


def same_place(address: str) -> str:
    """A form in which the usual names of this machine are one."""
    plain = address.rpartition("://")[2].rstrip("/").lower()
    host, _, port = plain.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("localhost", "[::1]", "127.0.0.1", "0.0.0.0") else plain  # noqa: S104


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key by which node-10 comes after node-9."""
    parts: list[tuple[int, int | str]] = []
    word = ""
    for letter in text + "\0":
        if word and letter.isdigit() != word[-1].isdigit():
            parts.append((0, int(word)) if word.isdecimal() else (1, word))
            word = ""
        word += letter
    return tuple(parts)

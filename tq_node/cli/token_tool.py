"""``tq-token new|list|revoke|invite``: makes, shows and ends access tokens; invites nodes.

``new`` prints the token and nothing else, once: keep it where only its owner reads. Exit code: 0
done, 1 refused or not reached, 2 used wrongly."""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import os
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from tq_node import limits
from tq_node.cli import invitation_file, tokens_file
from tq_node.cli.parse import duration
from tq_node.distributions import refuse_both
from tq_node.tokens import SECRET_BYTES, TOKEN_CHARS, Quotas, Role, TokenEntry, encode, hash_of, is_name, is_well_formed

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
TIMEOUT_S = 30.0
"""Longer than a node takes for any answer here."""
ANSWER_BYTES_MAX = 16 * limits.MIB
TOKEN_VARIABLE = "TQ_TOKEN"  # noqa: S105 (the name of a variable)
CA_VARIABLE = "TQ_CA"


class Failed(Exception):
    """One line for a person."""


class Shown(msgspec.Struct):
    """A token as ``list`` shows it; of a cluster as ``/tokens/list`` says it."""

    name: str
    roles: list[str]
    queues: list[str] | None = None
    expires_at: str | None = None
    created_at: str | None = None
    created_by: str | None = None
    kept_in: str = ""


class _Listed(msgspec.Struct):
    tokens: list[Shown]


class _Made(msgspec.Struct):
    token: str


class _Invited(msgspec.Struct):
    invitation: str
    expires_at: str


class _Ended(msgspec.Struct):
    success: bool


class _Problem(msgspec.Struct):
    detail: str = ""
    code: str = ""


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Do what the command line says, and return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    place: Place = FilePlace(given.file) if given.file is not None else ClusterPlace(given, environment)
    try:
        given.run(given, place)
    except (Failed, tokens_file.BadTokensFile, OSError) as why:
        sys.stderr.write(f"tq-token: {' '.join(str(why).split())}\n")
        return 1
    return 0


# --- the commands ---
def _new(given: argparse.Namespace, place: Place) -> None:
    if is_name(given.name) is None:
        raise Failed(f"{given.name!r} is no name: 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit")
    token = place.make(given)
    try:
        sys.stdout.write(f"{token}\n")
        sys.stdout.flush()
    except OSError as why:
        # Nobody has read it: it must not stay.
        place.end(given.name)
        raise Failed(f"the token can't be written, and was ended again: {why}") from None


def _list(_: argparse.Namespace, place: Place) -> None:
    rows = [("NAME", "ROLES", "QUEUES", "EXPIRES", "MADE", "KEPT IN")]
    for token in place.tokens():
        queues = "any" if token.queues is None else ",".join(token.queues) or "none"
        made = " ".join(
            part for part in (_short(token.created_at), token.created_by and f"by {token.created_by}") if part
        )
        rows.append(
            (token.name, ",".join(token.roles), queues, _short(token.expires_at) or "never", made, token.kept_in)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")


def _revoke(given: argparse.Namespace, place: Place) -> None:
    place.end(given.name)


def _invite(given: argparse.Namespace, place: Place) -> None:
    """Print the file for ``--invitation``; where that is a file, its owner alone reads it."""
    assert isinstance(place, ClusterPlace)
    with suppress(OSError, ValueError):
        fd = sys.stdout.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.fchmod(fd, 0o600)
    made = place.invitation()
    join = [url.removeprefix("http://").removesuffix("/") for url in given.join or [given.url]]
    sys.stdout.write(invitation_file.text_of(made.invitation, join, made.expires_at))
    sys.stdout.flush()


# --- where tokens are kept ---
class Place:
    """Where tokens are made, shown and ended."""

    def make(self, given: argparse.Namespace) -> str:
        """A new token, kept there."""
        raise NotImplementedError

    def tokens(self) -> Iterable[Shown]:
        raise NotImplementedError

    def end(self, name: str) -> None:
        raise NotImplementedError


class FilePlace(Place):
    """A file for ``--tokens-file``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self, given: argparse.Namespace) -> str:
        token = encode(os.urandom(SECRET_BYTES))
        expires_us = None if given.expires_in is None else time.time_ns() // 1_000 + given.expires_in * 1_000
        entry = TokenEntry(
            given.name,
            hash_of(token),
            tuple(dict.fromkeys(given.role)),
            None if given.queue is None else tuple(dict.fromkeys(given.queue)),
            expires_us,
            Quotas(**dict(given.quota)),
        )
        tokens_file.with_token(self._path, entry)
        return token

    def tokens(self) -> Iterable[Shown]:
        for entry in tokens_file.read(self._path):
            expires_at = None
            if entry.expires_us is not None:
                expires_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.expires_us // 1_000_000))
            queues = None if entry.queues is None else list(entry.queues)
            yield Shown(entry.name, list(entry.roles), queues, expires_at, kept_in=str(self._path))

    def end(self, name: str) -> None:
        tokens_file.without_token(self._path, name)


class ClusterPlace(Place):
    """The table of a cluster, by any of its nodes."""

    def __init__(self, given: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self._given = given
        self._environment = environment

    def make(self, given: argparse.Namespace) -> str:
        body: dict[str, Any] = {"name": given.name, "roles": list(dict.fromkeys(given.role))}
        if given.queue is not None:
            body["queues"] = list(dict.fromkeys(given.queue))
        if given.expires_in is not None:
            body["expires_in"] = given.expires_in / 1_000
        if given.quota:
            body["quotas"] = dict(given.quota)
        return self._ask("POST", "/tokens/put", _Made, body).token

    def tokens(self) -> Iterable[Shown]:
        return self._ask("GET", "/tokens/list", _Listed).tokens

    def end(self, name: str) -> None:
        self._ask("POST", f"/tokens/revoke?name={quote(name, safe='')}", _Ended)

    def invitation(self) -> _Invited:
        """For one node, kept there."""
        return self._ask("POST", "/cluster/invite", _Invited)

    def _ask(self, method: str, path: str, kind: type[S], body: object = None) -> S:
        sent = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if sent is not None else {}
        token = self._token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection = self._connection()
        try:
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as why:
            raise Failed(f"{self._given.url}: {str(why) or type(why).__name__}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise Failed(f"{self._given.url}: {_refusal(answer.status, content)}")
        return _read(content, kind, self._given.url)

    def _connection(self) -> http.client.HTTPConnection:
        url = urlsplit(self._given.url)
        host, port = url.hostname or "", url.port
        if url.scheme == "https":
            cafile = self._given.ca or self._environment.get(CA_VARIABLE) or None
            context = ssl.create_default_context(cafile=cafile)
            if self._given.cert is not None:
                context.load_cert_chain(self._given.cert, self._given.key)
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        if not _is_loopback(host):
            sys.stderr.write(f"tq-token: {self._given.url}: tokens go there in plain text; https:// hides them\n")
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)

    def _token(self) -> str | None:
        path: Path | None = self._given.token_file
        if path is None:
            return self._environment.get(TOKEN_VARIABLE) or None
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(2 * TOKEN_CHARS)
        if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise Failed(f"{path}: its mode is {mode:04o}, which lets others at the token: chmod 600 {path}")
        token = content.decode("latin-1").strip()
        if not is_well_formed(token):
            raise Failed(f"{path}: holds no token (tq_ and {TOKEN_CHARS - 3} characters)")
        return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusal(status: int, content: bytes) -> str:
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except (ValueError, RecursionError):
        problem = _Problem()
    again = "; do it again" if problem.code == "outcome_unknown" else ""
    return f"{problem.detail or 'refused'} ({status}{f' {problem.code}' if problem.code else ''}){again}"


def _read(content: bytes, kind: type[S], url: str) -> S:
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError):
        raise Failed(f"{url}: this is no answer of a node") from None


def _short(at: str | None) -> str:
    """A time to the second."""
    return "" if at is None else f"{at[:19]}Z"


# --- the command line ---
def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser("tq-token", description=text[0], epilog=text[-1], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = _command(commands, "new", _new, "make a token and print it")
    new.add_argument("--name", required=True, help="its name, which stands with what it submits and orders")
    new.add_argument("--role", required=True, action="append", type=_typed(_role), metavar="ROLE",
                     help=f"what it may do: {', '.join(Role)}; may be given several times")  # fmt: skip
    new.add_argument(
        "--queue", action="append", metavar="QUEUE", help="only tasks of this queue; several times: of these"
    )
    new.add_argument("--expires-in", type=_typed(duration(1, limits.TOKEN_EXPIRES_S_MAX)), metavar="TIME",
                     help="when it ends by itself: 90d, 12h [default: never]")  # fmt: skip
    new.add_argument("--quota", action="append", type=_typed(_quota), default=[], metavar="WHAT=N",
                     help=f"a bound of its own: {', '.join(Quotas.__struct_fields__)}")  # fmt: skip
    _command(commands, "list", _list, "show the tokens, without themselves")
    revoke = _command(commands, "revoke", _revoke, "end a token")
    revoke.add_argument("name", metavar="NAME")
    invite = _command(commands, "invite", _invite, "print a file for --invitation: one node may join, once, in an hour")
    invite.add_argument("--join", action="append", type=_typed(_url), metavar="URL",
                        help="whom the node that joins asks; several times: any of them [default: --url]")  # fmt: skip
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, Place], None], what: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    parser.set_defaults(run=run)
    place = parser.add_mutually_exclusive_group(required=True)
    if run is _invite:
        parser.set_defaults(file=None)
    else:
        place.add_argument("--file", type=Path, help="a file for --tokens-file of nodes")
    place.add_argument("--url", type=_typed(_url), help="a node of the cluster: https://HOST:PORT or http://HOST:PORT")
    parser.add_argument("--token-file", type=Path, metavar="FILE",
                        help=f"the token to show to the node [default: ${TOKEN_VARIABLE}]")  # fmt: skip
    parser.add_argument("--ca", metavar="FILE",
                        help=f"who vouches for the node's certificate [default: ${CA_VARIABLE}, else the system's]")  # fmt: skip
    parser.add_argument("--cert", metavar="FILE", help="certificate to show to the node")
    parser.add_argument("--key", metavar="FILE", help="its private key [default: in the same file]")
    return parser


def _typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The parser with its refusal as ``argparse`` wants it."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as why:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} {why}") from None

    return parsed


def _role(text: str) -> Role:
    if text not in frozenset(Role):
        raise ValueError(f"is no role: {', '.join(Role)}")
    return Role(text)


def _quota(text: str) -> tuple[str, float | int]:
    name, _, number = text.partition("=")
    if name not in Quotas.__struct_fields__:
        raise ValueError(f"is not one of {', '.join(Quotas.__struct_fields__)} and its number: requests=50")
    try:
        value = float(number)
    except ValueError:
        raise ValueError("says no number: requests=50") from None
    if not 0 <= value <= limits.TOKEN_QUOTA_MAX or (name != "requests" and value != int(value)):
        raise ValueError(f"is not between 0 and {limits.TOKEN_QUOTA_MAX}, or not whole")
    return name, int(value) if value == int(value) else value


def _url(text: str) -> str:
    url = urlsplit(text)
    has_port = url.port is not None  # raises ValueError for one that is none
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
        raise ValueError("is neither https://HOST:PORT nor http://HOST:PORT")
    if url.path not in ("", "/") or url.query or url.fragment or not has_port:
        raise ValueError("is not just https://HOST:PORT or http://HOST:PORT")
    return text


def command() -> None:
    """The console script."""
    refuse_both("tq-token")
    sys.exit(main())


if __name__ == "__main__":
    command()

"""Settings: command line > environment > TOML file > default; validated once, never read again.

``load`` only looks: it creates nothing on disk. Whatever is wrong is a ``BadOption`` whose text is
one line that names the option and where its value came from."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from tq_node import limits
from tq_node.cli import invitation_file
from tq_node.cli import tokens_file as token_files
from tq_node.cli.addresses import (
    LOOPBACK,
    Address,
    Listen,
    parse_advertised,
    parse_host,
    parse_listen,
    parse_member,
    unix_address,
)
from tq_node.cli.option_table import BY_NAME
from tq_node.cli.parse import (
    duration,
    parse_field_pattern,
    parse_flag,
    parse_module,
    parse_node_name,
    parse_variable,
    parse_voters,
    path_from,
    rate,
    readable_file,
    size,
    unless,
    unusable,
    whole,
)
from tq_node.types import NodeName

T = TypeVar("T")

PEER_PORT_OFFSET = 1_000
COMPATIBLE_PORT_OFFSET = 2_000
"""The original example served its task API on the port of ``HTTP_ADDR`` + 2000."""
STORE_FILE = "taskqueue.sqlite3"
"""Name of the store in the data directory; a directory without it is empty."""
BIRTH_GUARD_VARIABLE = "TQ_TEST_BIRTH_GUARD_S"
"""Environment variable for tests that found clusters by the dozen; not an option (F15a)."""
BIRTH_GUARD_S_MAX = 60
COPIES_MAX = 7
CONCURRENCY_MAX = 4_096
YEAR_S = 365 * 86_400
CONFIG_BYTES_MAX = 1024 * 1024
_LINE_CHARS_MAX = 600


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a node, complete and consistent. Times in ms, sizes in bytes, paths absolute."""

    node_name: NodeName
    http: Listen
    http_compatible: Listen | None
    """The second address of the same site, where the first came from ``HTTP_ADDR``."""
    peer: Listen
    advertise: str
    """Host that others use to reach this node."""
    http_names: tuple[str, ...]
    """More host names under which clients may ask this node."""
    invitation: Path | None
    """Shown where this node has no secret to join with; may be gone once it has joined."""
    join: tuple[Address, ...]
    """Members to ask, maybe this node too. With them an empty node never founds a cluster."""
    data_dir: Path
    """May not exist yet."""
    working_dir: Path
    """Where the command was given; handler modules are also found here. Daemons leave it."""
    handlers: tuple[str, ...]
    """Dotted module names; empty: the simulated ones, where they can do no harm."""
    no_handler_after_ms: int | None
    """How long a task may wait for a handler before it fails. None: for ever."""
    concurrency: int
    worker_memory_bytes: int | None
    """Bound on the memory of each worker process. None: no bound."""
    worker_env: tuple[str, ...]
    """Patterns of the variables that worker processes get. Empty: all but the node's own."""
    echo_handlers: bool
    replication_factor: int
    partitions: int
    voters: int
    secret_file: Path | None
    tokens_file: Path | None
    """Tokens that count at this node whatever the cluster's table says. None: there are none."""
    trusts_tokens: bool
    """Callers need a token of the table before this node has heard of one."""
    peer_cert: Path | None
    peer_key: Path | None
    peer_ca: Path | None
    peer_crl: Path | None
    http_cert: Path | None
    """HTTPS at the HTTP address, as ``http_key``; None: plain HTTP."""
    http_key: Path | None
    http_client_ca: Path | None
    """Clients must show a certificate of this authority."""
    ca: Path | None
    """Whom the node trusts where it is a client; None: the system's authorities."""
    buffered_sends: bool
    """TCP connections are Twisted's own, not ``direct_sends``."""
    insecure_http: bool
    """Remote clients need no credentials; logged at each start, in ``/ready``, as is the next."""
    insecure_peers: bool
    """Peers need no credentials; a secret that others can read is accepted."""
    readmit: bool
    """Set a failed store aside first; never without ``join``."""
    retention_ms: int
    dedupe_window_ms: int
    stop_timeout_ms: int
    body_bytes_max: int
    payload_bytes_max: int
    disk_free_bytes_min: int
    snapshot_dir: Path
    """Folder for this node's snapshots alone; may not exist yet."""
    snapshots_kept: int
    redact: tuple[str, ...]
    """Names of fields, or patterns, whose values lists don't show."""
    audit_log: Path | None
    """None: no audit log is kept."""
    audit_file_bytes: int
    audit_files_kept: int
    copy_rate_bytes_s: int
    """0: no bound."""
    metrics_labels: int
    """Number of queues, and of types, with metrics of their own."""
    open_metrics: bool
    """``/metrics`` needs no token."""
    birth_guard_s: float | None
    """None: as long as the protocol says. Set by tests only."""
    http_public: Address
    """The HTTP address as others dial it."""
    peer_public: str
    """Where peers dial this node: ``HOST:PORT``, or ``unix:PATH``."""

    @property
    def is_for_this_machine(self) -> bool:
        """Whether only this machine can reach the node, and without tokens: to try things out."""
        addresses = (self.http, self.http_compatible, self.peer)
        return not self.asks_for_tokens and all(one is None or one.is_local for one in addresses)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether callers need a token whatever the cluster's table says."""
        return self.trusts_tokens or self.tokens_file is not None

    @property
    def http_tls(self) -> bool:
        """Whether clients reach this node by HTTPS."""
        return self.http_cert is not None or self.http.endpoint.startswith("ssl:")

    @property
    def http_url(self) -> str:
        return f"{'https' if self.http_tls else 'http'}://{self.http_public}"

    @property
    def http_registered(self) -> str:
        """The HTTP address as the cluster shows it: with ``https://`` where it is so."""
        return self.http_url if self.http_tls else str(self.http_public)

    @property
    def pid_file(self) -> Path:
        return self.data_dir / "twistd.pid"

    @property
    def host_names(self) -> frozenset[str]:
        """Host names that a request may use, besides every IP address."""
        bound = (self.http.host, self.http_compatible.host if self.http_compatible is not None else None)
        return frozenset({"localhost", self.advertise, *self.http_names, *(host for host in bound if host)})

    @property
    def http_own(self) -> tuple[str, ...]:
        """This node's own HTTP address, spelt ``HOST:PORT``; it does not ask that for a cluster."""
        bound = [
            listen for listen in (self.http, self.http_compatible) if listen is not None and listen.port is not None
        ]
        own = [str(Address(LOOPBACK if listen.is_wildcard else listen.host or "", listen.port)) for listen in bound]
        return tuple(dict.fromkeys((str(self.http_public), *own)))


class BadOption(Exception):
    """``str()`` is one line for a person, ready to print."""

    def __init__(self, name: str, source: str, reason: str) -> None:
        at = f" ({source})" if source else ""
        called = f"--{name}" if name in BY_NAME else name
        line = " ".join(f"{called}{at}: {reason}".split())
        super().__init__(line if len(line) <= _LINE_CHARS_MAX else f"{line[:_LINE_CHARS_MAX]}…")


class Given(NamedTuple):
    """An option's values, all from one source; ``source`` empty: command line or default."""

    values: tuple[str, ...]
    source: str
    explicit: bool


class Sources:
    """The three places that values come from, in order of precedence."""

    def __init__(self, command_line: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> None:
        self._command_line = command_line
        self._environment = environment
        self._file: Mapping[str, tuple[str, ...]] = {}
        self._path = ""
        config = self.given("config")
        if config.values:
            self._path = config.values[-1]
            self._file = read_file(Path(self._path), config.source)

    def given(self, name: str) -> Given:
        option = BY_NAME[name]
        if said := tuple(self._command_line.get(name, ())):
            return Given(said, "", True)
        for variable in option.environment:
            if value := self._environment.get(variable, ""):
                return Given((value,), variable, True)
        if name in self._file:
            return Given(self._file[name], self._path, True)
        return Given(() if option.default is None else (option.default,), "", False)

    def one(self, name: str, parse: Callable[[str], T]) -> T:
        """The parsed value of an option with a default."""
        given = self.given(name)
        return _parsed(name, given, given.values[-1], parse)

    def maybe(self, name: str, parse: Callable[[str], T]) -> T | None:
        given = self.given(name)
        return _parsed(name, given, given.values[-1], parse) if given.values else None

    def many(self, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        given = self.given(name)
        parts = [part.strip() for value in given.values for part in value.split(",")]
        return tuple(dict.fromkeys(_parsed(name, given, part, parse) for part in parts))

    def flag(self, name: str) -> bool:
        return bool(self.maybe(name, parse_flag))

    def refuse(self, name: str, reason: str) -> BadOption:
        return BadOption(name, self.given(name).source, reason)


def load(command_line: Mapping[str, Sequence[str]], environment: Mapping[str, str], working_dir: Path) -> NodeSettings:
    """Read, validate and complete everything.

    :param command_line: the values of each option, in order; a flag is ``["true"]``.
    :raises BadOption: the first thing that is wrong."""
    sources = Sources(command_line, environment)
    node_name = NodeName(sources.one("node-id", parse_node_name))
    http = sources.one("http", parse_listen)
    secret_file, peer_files = _peer_credentials(sources, working_dir)
    http_files = _http_files(sources, working_dir, http)
    insecure_http, insecure_peers = (
        sources.flag("insecure") or sources.flag(f"insecure-{side}") for side in ("http", "peers")
    )
    are_peers_protected = secret_file is not None or any(peer_files.values())
    tokens_file, trusts_tokens = _tokens(sources, working_dir), sources.flag("tokens")
    if not (http.is_local or insecure_http):
        if tokens_file is None and not trusts_tokens:
            raise sources.refuse("http", _http_unprotected(http, are_peers_protected))
        if http_files["http-cert"] is None and not http.endpoint.startswith("ssl:"):
            raise sources.refuse("http", _tokens_in_the_clear(http))
    peer = _peer(sources, http)
    if not (peer.is_local or insecure_peers or are_peers_protected):
        raise sources.refuse("peer", _peers_unprotected(peer))
    advertised = _advertised(sources, http, peer)
    http_compatible = None
    if sources.given("http").source == "HTTP_ADDR" and http.port is not None:
        http_compatible = _moved(sources, "http", http, COMPATIBLE_PORT_OFFSET)
    _refuse_collisions(sources, http, peer, http_compatible)
    body_bytes_max, payload_bytes_max = _sizes(sources)
    data_dir = sources.maybe("data-dir", path_from(working_dir)) or working_dir / "data" / node_name
    if why := unusable(data_dir):
        raise sources.refuse("data-dir", f"{str(data_dir)!r} {why}")
    snapshot_dir = sources.maybe("snapshot-dir", path_from(working_dir))
    if snapshot_dir is not None and (why := unusable(snapshot_dir)):
        raise sources.refuse("snapshot-dir", f"{str(snapshot_dir)!r} {why}")
    invitation = sources.maybe("invitation", path_from(working_dir))
    join = _join(sources, invitation, insecure_http)
    if trusts_tokens and tokens_file is None and not join and not (data_dir / STORE_FILE).exists():
        raise sources.refuse(
            "tokens", "needs --join or --tokens-file: who founds a cluster has no token to make the first one with"
        )
    readmit = sources.flag("readmit")
    if readmit and not join:
        raise sources.refuse(
            "readmit", "needs --join: a node that sets its store aside gets its tasks back from the others only"
        )
    return NodeSettings(
        node_name=node_name,
        http=http,
        http_compatible=http_compatible,
        peer=peer,
        advertise=advertised.host,
        http_names=sources.many("http-name", parse_host),
        join=join,
        invitation=invitation,
        data_dir=data_dir,
        working_dir=working_dir,
        handlers=sources.many("handlers", parse_module),
        no_handler_after_ms=sources.one("no-handler-after", unless("never", duration(1, 10 * YEAR_S))),
        concurrency=sources.one("concurrency", whole(0, CONCURRENCY_MAX)),
        worker_memory_bytes=sources.maybe("worker-memory", size(limits.WORKER_MEMORY_BYTES_MIN, 2**50)),
        worker_env=sources.many("worker-env", parse_variable),
        echo_handlers=sources.flag("echo-handlers"),
        replication_factor=sources.one("replication-factor", whole(1, COPIES_MAX)),
        partitions=sources.one("partitions", whole(1, limits.PARTITIONS_MAX)),
        voters=sources.one("voters", parse_voters),
        secret_file=secret_file,
        tokens_file=tokens_file,
        trusts_tokens=trusts_tokens,
        peer_cert=peer_files["peer-cert"],
        peer_key=peer_files["peer-key"],
        peer_ca=peer_files["peer-ca"],
        peer_crl=_peer_crl(sources, working_dir, peer_files["peer-ca"]),
        http_cert=http_files["http-cert"],
        http_key=http_files["http-key"],
        http_client_ca=http_files["http-client-ca"],
        ca=sources.maybe("ca", readable_file(working_dir)),
        buffered_sends=sources.flag("buffered-sends"),
        insecure_http=insecure_http,
        insecure_peers=insecure_peers,
        readmit=readmit,
        retention_ms=sources.one("retention", duration(1, 10 * YEAR_S)),
        dedupe_window_ms=sources.one("dedupe-window", duration(1, 10 * YEAR_S)),
        stop_timeout_ms=sources.one("stop-timeout", duration(0, 86_400)),
        body_bytes_max=body_bytes_max,
        payload_bytes_max=payload_bytes_max,
        disk_free_bytes_min=sources.one("min-free-disk", size(limits.DISK_FLOOR_BYTES, 2**60)),
        snapshot_dir=data_dir if snapshot_dir is None else snapshot_dir / node_name,
        redact=sources.many("redact", parse_field_pattern),
        audit_log=sources.maybe("audit-log", path_from(working_dir)),
        audit_file_bytes=sources.one("audit-size", size(limits.AUDIT_FILE_BYTES_MIN, 2**50)),
        audit_files_kept=sources.one("audit-kept", whole(1, limits.AUDIT_FILES_KEPT_MAX)),
        snapshots_kept=sources.one("snapshots-kept", whole(1, limits.SNAPSHOTS_KEPT_MAX)),
        copy_rate_bytes_s=sources.one("copy-rate", rate(limits.COPY_RATE_BYTES_S_MIN, 2**40)),
        metrics_labels=sources.one("metrics-labels", whole(1, limits.METRICS_LABELS_MAX)),
        open_metrics=sources.flag("open-metrics"),
        http_public=Address(advertised.host, advertised.port or http.port),
        birth_guard_s=_birth_guard_s(environment),
        peer_public=unix_address(peer, working_dir) or str(Address(advertised.host, peer.port)),
    )


def read_file(path: Path, source: str) -> dict[str, tuple[str, ...]]:
    """The values of a TOML file, as text; raises ``BadOption`` if unreadable or of no option."""
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            raise BadOption(
                "config", source, f"{str(path)!r} has more than {CONFIG_BYTES_MAX} bytes: not a file of options"
            )
        document = tomllib.loads(content.decode())
    except OSError as why:
        raise BadOption("config", source, f"{str(path)!r}: {why.strerror}") from None
    except (ValueError, RuntimeError) as why:  # no TOML, no UTF-8; "\\0" in the name, "~" of nobody
        raise BadOption("config", source, f"{str(path)!r} is not a TOML file: {why}") from None
    values: dict[str, tuple[str, ...]] = {}
    for key, value in document.items():
        if key not in BY_NAME or key == "config":
            near = difflib.get_close_matches(key.replace("_", "-"), BY_NAME, 1)
            hint = f"; did you mean {near[0]!r}?" if near and near[0] != key else ""
            raise BadOption("config", source, f"{str(path)!r}: unknown key {key!r}{hint}")
        items = value if isinstance(value, list) and BY_NAME[key].many else [value]
        texts = [_toml_text(item) for item in items]
        if None in texts:
            wanted = "a flag: true or false" if not BY_NAME[key].metavar else "a string or a number"
            raise BadOption(key, str(path), f"wants {wanted}, not {type(value).__name__}")
        if texts:
            values[key] = tuple(text for text in texts if text is not None)
    return values


def _toml_text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


# --- what needs more than one option ---
def _parsed(name: str, given: Given, text: str, parse: Callable[[str], T]) -> T:
    if not text:
        raise BadOption(name, given.source, "is empty")
    shown = repr(text) if len(text) <= 100 else f"{text[:100]!r}…"
    try:
        return parse(text)
    except ValueError as why:
        raise BadOption(name, given.source, f"{shown} {why}") from None


def _moved(sources: Sources, name: str, http: Listen, ports: int) -> Listen:
    try:
        return http.moved(ports)
    except ValueError as why:
        raise sources.refuse(name, f"the HTTP port + {ports}: {why}") from None


def _peer_credentials(sources: Sources, working_dir: Path) -> tuple[Path | None, dict[str, Path | None]]:
    """What peers know one another by: the secret's file, and the three of TLS, not yet read."""
    names = ("peer-cert", "peer-key", "peer-ca")
    peer_files = {name: sources.maybe(name, readable_file(working_dir)) for name in names}
    if any(peer_files.values()):
        for name, path in peer_files.items():
            if path is None:
                raise sources.refuse(name, "is missing: --peer-cert, --peer-key and --peer-ca go together")
    return sources.maybe("secret-file", readable_file(working_dir)), peer_files


def _http_files(sources: Sources, working_dir: Path, http: Listen) -> dict[str, Path | None]:
    """The files of HTTPS, not yet read."""
    names = ("http-cert", "http-key", "http-client-ca")
    files = {name: sources.maybe(name, readable_file(working_dir)) for name in names}
    if any(files.values()):
        for name in ("http-cert", "http-key"):
            if files[name] is None:
                raise sources.refuse(name, "is missing: HTTPS needs --http-cert and --http-key")
        if http.endpoint.startswith("ssl:"):
            raise sources.refuse("http", "'ssl:' does HTTPS of its own: give an address, or leave --http-cert out")
    return files


def _join(sources: Sources, invitation: Path | None, insecure_http: bool) -> tuple[Address, ...]:
    """Whom to ask: ``--join``, else those in the invitation."""
    join = sources.many("join", parse_member)
    if invitation is None:
        return join
    try:
        addresses = join or tuple(parse_member(text) for text in invitation_file.read(invitation).join)
    except ValueError as why:
        raise sources.refuse("invitation", str(why)) from None
    if not addresses:
        raise sources.refuse("invitation", f"{str(invitation)!r} names nobody to ask: give --join too")
    for address in addresses:
        if not (address.is_tls or address.is_loopback or insecure_http):
            raise sources.refuse(
                "invitation", f"would be shown to {address} in plain text: name it as https://, or say --insecure-http"
            )
    return addresses


def _peer_crl(sources: Sources, working_dir: Path, authority: Path | None) -> Path | None:
    revoked = sources.maybe("peer-crl", readable_file(working_dir))
    if revoked is not None and authority is None:
        raise sources.refuse("peer-crl", "goes with --peer-cert, --peer-key and --peer-ca")
    return revoked


_NO_PEER_CREDENTIALS = "the peers have neither --secret-file nor --peer-cert, --peer-key and --peer-ca"


def _tokens(sources: Sources, working_dir: Path) -> Path | None:
    path = sources.maybe("tokens-file", readable_file(working_dir))
    if path is not None:
        try:
            token_files.read(path)
        except (OSError, token_files.BadTokensFile) as why:
            raise sources.refuse("tokens-file", str(why)) from None
    return path


def _http_unprotected(http: Listen, are_peers_protected: bool) -> str:
    """The refusal to serve HTTP beyond loopback to whoever comes."""
    also = "" if are_peers_protected else f", and {_NO_PEER_CREDENTIALS}"
    return (
        f"{http.host or http.endpoint} is not loopback, and the HTTP side asks for no access tokens{also}: give "
        "--tokens-file, or --tokens where the cluster's table has them, or say --insecure-http to serve whoever can reach it"
    )


def _tokens_in_the_clear(http: Listen) -> str:
    return (
        f"{http.host or http.endpoint} is not loopback, and tokens would go there in plain text: give --http-cert and "
        "--http-key, or say --insecure-http where something in front of it does TLS"
    )


def _peers_unprotected(peer: Listen) -> str:
    return (
        f"{peer.host or peer.endpoint} is not loopback, and {_NO_PEER_CREDENTIALS}: give one or the other, "
        "or say --insecure-peers"
    )


def _birth_guard_s(environment: Mapping[str, str]) -> float | None:
    text = environment.get(BIRTH_GUARD_VARIABLE, "")
    given = Given((text,), "", True)
    parse = duration(0, BIRTH_GUARD_S_MAX)
    return _parsed(BIRTH_GUARD_VARIABLE, given, text, parse) / 1000 if text else None


def _peer(sources: Sources, http: Listen) -> Listen:
    peer = sources.maybe("peer", parse_listen)
    if peer is not None:
        if peer.endpoint.startswith("ssl:"):
            raise sources.refuse("peer", "'ssl:' is not for peers: give --peer-cert, --peer-key and --peer-ca")
        if peer.endpoint.startswith("systemd:"):
            raise sources.refuse("peer", "'systemd:' says no port that other nodes could dial")
        return peer
    if http.port is None or http.is_wildcard:
        kind = "a wildcard address" if http.port else "an endpoint without a port"
        raise sources.refuse("peer", f"is missing: --http is {kind}, which needs --peer and --advertise")
    return _moved(sources, "peer", http, PEER_PORT_OFFSET)


def _advertised(sources: Sources, http: Listen, peer: Listen) -> Address:
    given = sources.maybe("advertise", parse_advertised)
    if given is not None:
        if (given.port or http.port) is None:
            raise sources.refuse(
                "advertise", f"{given.host!r} says no port, and --http {http.endpoint} has none: give HOST:PORT"
            )
        return given
    for name, listen in (("http", http), ("peer", peer)):
        has_path = name == "peer" and listen.endpoint.startswith("unix:")  # no host is needed to dial that
        if (listen.host is None and not has_path) or listen.is_wildcard:
            raise sources.refuse(
                "advertise", f"is missing: --{name} {listen.endpoint} says no host that others could use"
            )
    assert http.host is not None
    return Address(http.host, None)


def _refuse_collisions(sources: Sources, http: Listen, peer: Listen, compatible: Listen | None) -> None:
    bound = [("http", http), ("peer", peer), ("http", compatible)]
    for place, (name, later) in enumerate(bound):
        for other, earlier in bound[:place]:
            if later is not None and earlier is not None and later.collides_with(earlier):
                raise sources.refuse(name, f"port {later.port} is already that of --{other}")


def _sizes(sources: Sources) -> tuple[int, int]:
    """(largest body, largest payload). A payload that nobody asked for shrinks with the body."""
    held = limits.ENTRY_BYTES_MAX - 64 * limits.KIB
    body = sources.one("max-body", size(limits.KIB, 256 * limits.MIB))
    payload = sources.one("max-payload", size(1, 2**60))
    if payload > held:
        raise sources.refuse("max-payload", f"{payload} bytes are more than an entry of the log holds ({held})")
    if payload > body and sources.given("max-payload").explicit:
        raise sources.refuse("max-payload", f"{payload} bytes do not fit into a body of {body} (--max-body)")
    return body, min(payload, body)

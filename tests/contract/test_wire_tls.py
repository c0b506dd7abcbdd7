"""Mutual TLS between peers, and the script that makes what it needs."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet.defer import Deferred

from tests.support.certificates import revoke
from tests.support.wire_kinds import TcpWire, TlsWire, make_cluster_ca, peer_tls
from tests.support.wires import WireNode, clean
from tq_node.wire.authentication import Shown
from tq_node.wire.commands import Lane, Register
from tq_node.wire.errors import WrongCertificate, WrongSecret
from tq_node.wire.tls import PeerTLS

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The cluster's authority, and somebody else's."""
    made = tmp_path_factory.mktemp("ca")
    for name in ("ours", "theirs"):
        done = make_cluster_ca(made / name, "a", "b")
        assert done.returncode == 0, done.stderr
    return made / "ours", made / "theirs"


class House:
    def __init__(self, folders: tuple[Path, Path]) -> None:
        self.ours, self.theirs = folders
        self.nodes: list[WireNode] = []

    async def node(self, name: str, wire: TcpWire | None = None, **options: Any) -> WireNode:
        made = await WireNode(wire or TlsWire(self.ours), name, **options).listen()
        self.nodes.append(made)
        return made


@async_fixture()
async def house(folders: tuple[Path, Path]) -> AsyncIterator[House]:
    made = House(folders)
    yield made
    for node in made.nodes:
        await node.stop()
    assert not list(clean(TcpWire(), made.nodes))


async def refusals(a: WireNode, b: WireNode) -> set[str]:
    """What keeps a from b, seen from both sides."""
    a.dial(b)
    await a.wire.until(lambda: len(a.handler.failures) > 3, "refusals")
    assert not a.handler.seen("up")
    assert not b.listener.peers
    return {getattr(why, "code", "") for why in a.handler.failures} | set(b.listener.refusals)


# --- who gets in ---
@deferred
async def test_certificates_alone_are_enough(house: House) -> None:
    a, b = await house.node("a", secret=None), await house.node("b", secret=None)
    await a.meet(b)
    await b.meet(a)
    assert await a.wire.wait(a.pool.ask(b.node_id, Register, b"x" * 200_000)) == b"x" * 200_000


@deferred
async def test_a_secret_is_checked_besides_where_there_is_one(house: House) -> None:
    a, b = await house.node("a", secret=None), await house.node("b")
    assert WrongSecret.code in await refusals(a, b)


@deferred
async def test_a_node_must_be_who_its_certificate_says(house: House) -> None:
    a = await house.node("a", with_tls="b")
    b = await house.node("b")
    assert await refusals(a, b) == {WrongCertificate.code}


@deferred
async def test_a_listener_must_be_who_its_certificate_says(house: House) -> None:
    a, b = await house.node("a"), await house.node("b", with_tls="a")
    codes = await refusals(a, b)
    assert WrongCertificate.code in codes
    assert "certificate is for a, not for b" in str(a.handler.failures[0])


@pytest.mark.parametrize("stranger", ["dialler", "listener"])
@deferred
async def test_another_authority_is_not_believed(house: House, stranger: str) -> None:
    theirs = TlsWire(house.theirs)
    a = await house.node("a", theirs if stranger == "dialler" else None)
    b = await house.node("b", theirs if stranger == "listener" else None)
    assert "peer_unreachable" in await refusals(a, b)
    assert any("alert" in str(why) or "verify failed" in str(why) for why in a.handler.failures)
    assert not b.handler.greetings, "nothing is said before both are known"


@pytest.mark.parametrize("without", ["dialler", "listener"])
@deferred
async def test_without_a_certificate_nobody_is_accepted(house: House, without: str) -> None:
    a = await house.node("a", TcpWire() if without == "dialler" else None)
    b = await house.node("b", TcpWire() if without == "listener" else None)
    await refusals(a, b)
    assert not b.handler.greetings


@deferred
async def test_a_client_without_a_certificate_is_refused_by_the_listener_itself(house: House) -> None:
    """Not by a program that is as polite as ours."""
    node = await house.node("b")
    port = node.address.rpartition(":")[2]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(house.ours / "ca.crt"), "-quiet"]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\0\x08_command\0\5Greet")
    process.stdin.flush()
    await node.wire.until(lambda: process.poll() is not None, "its end")
    said = process.stdout.read()
    process.stdin.close()
    process.stdout.close()
    assert b"certificate required" in said
    assert not node.handler.greetings


# --- files ---
def test_unreadable_files_are_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    ours, _ = folders
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    broken = tmp_path / "broken"
    broken.write_bytes((ours / "a.crt").read_bytes().replace(b"M", b"N"))
    files = (ours / "a.crt", ours / "a.key", ours / "ca.crt")
    PeerTLS(*files)
    for place in range(3):
        for bad in (empty, broken):
            given = [bad if number == place else file for number, file in enumerate(files)]
            with pytest.raises(ValueError, match=str(bad)):
                PeerTLS(*given)
    with pytest.raises(ValueError, match="is not the key of"):
        PeerTLS(ours / "a.crt", ours / "b.key", ours / "ca.crt")
    with_passphrase = tmp_path / "locked.key"
    locked = load_pem_private_key((ours / "a.key").read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"words")
    )
    with_passphrase.write_bytes(locked)
    with pytest.raises(ValueError, match="without a passphrase"):
        PeerTLS(ours / "a.crt", with_passphrase, ours / "ca.crt")


def test_the_names_of_a_certificate_that_has_none(folders: tuple[Path, Path]) -> None:
    class Transport:
        def __init__(self, certificate: object) -> None:
            self.certificate = certificate

        def getPeerCertificate(self) -> object:
            return self.certificate

    assert PeerTLS.shown_by(Transport(None)) == Shown()


# --- deploy/make-cluster-ca ---
def test_the_script_makes_an_authority_and_adds_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ca"
    first = make_cluster_ca(folder, "node-1", "node_2.x")
    assert (first.returncode, first.stderr) == (0, "")
    authority = (folder / "ca.crt").read_bytes()
    assert make_cluster_ca(folder, "node-3").returncode == 0
    assert (folder / "ca.crt").read_bytes() == authority
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in ("ca", "node-1", "node_2.x", "node-3"):
        assert stat.S_IMODE(os.stat(folder / f"{name}.key").st_mode) == 0o600
    for name in ("node-1", "node_2.x", "node-3"):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        peer_tls(folder, name)
    strict = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    strict.load_cert_chain(folder / "node-1.crt", folder / "node-1.key")


def test_the_script_overwrites_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    assert make_cluster_ca(folder, "node-1").returncode == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    wrong = {("node-2", "node-1"): "node-1 has", ("../x",): "not the name", ("ca",): "not the name", (): "required"}
    for names, said in wrong.items():
        done = make_cluster_ca(folder, *names)
        assert done.returncode != 0
        assert said in done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "ca.key").unlink()
    done = make_cluster_ca(folder, "node-2")
    assert done.returncode == 1
    assert "only one of" in done.stderr


# --- files that change, certificates that were revoked ---
def reissued(folder: Path, name: str, into: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and authority of a node in files of its own, which a test may replace."""
    into.mkdir(exist_ok=True)
    for source, target in ((f"{name}.crt", "crt"), (f"{name}.key", "key"), ("ca.crt", "ca")):
        (into / target).write_bytes((folder / source).read_bytes())
    return into / "crt", into / "key", into / "ca"


class OwnTls(TlsWire):
    """A node with a ``PeerTLS`` of the test's making."""

    def __init__(self, made: PeerTLS) -> None:
        super().__init__(Path())
        self.made = made

    def tls(self, name: str) -> PeerTLS:
        return self.made


@deferred
async def test_changed_files_count_for_new_connections_and_end_none(
    house: House, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, theirs = folders
    both = tmp_path / "both"
    both.write_bytes((ours / "ca.crt").read_bytes() + (theirs / "ca.crt").read_bytes())
    a_files, b_files = reissued(ours, "a", tmp_path / "a"), reissued(ours, "b", tmp_path / "b")
    a_tls, b_tls = PeerTLS(*a_files[:2], both), PeerTLS(*b_files[:2], both)
    a, b = await house.node("a", OwnTls(a_tls)), await house.node("b", OwnTls(b_tls))
    await a.meet(b)
    before = b_tls.own_digest
    b_tls.follow(PeerTLS(theirs / "b.crt", theirs / "b.key", both))
    assert b_tls.own_digest != before
    assert await a.wire.wait(a.pool.ask(b.node_id, Register, b"said")) == b"said"
    assert not a.handler.seen("lost")
    a_tls.follow(PeerTLS(*a_files[:2], theirs / "ca.crt"))
    a.pool.hang_up(b.node_id, "so that it dials again")
    await a.wire.until(lambda: len(a.handler.seen("up")) == 4, "both lanes anew")
    connection = a.pool.connection(b.node_id, Lane.BULK)
    assert connection is not None
    assert PeerTLS.shown_by(connection.transport).digest == b_tls.own_digest


@pytest.mark.parametrize("revoked", ["a", "b"])
@deferred
async def test_who_shows_a_revoked_certificate_is_refused_by_either_end(
    house: House, folders: tuple[Path, Path], tmp_path: Path, revoked: str
) -> None:
    ours, _ = folders
    crl = revoke(ours, tmp_path / "crl", revoked)
    wires = {
        name: TlsWire(ours) if name == revoked else OwnTls(PeerTLS(*reissued(ours, name, tmp_path / name), crl))
        for name in "ab"
    }
    a, b = await house.node("a", wires["a"]), await house.node("b", wires["b"])
    await refusals(a, b)
    assert not b.handler.greetings, "nothing is said before both are known"


@deferred
async def test_an_open_connection_is_cut_off_once_its_certificate_is_revoked(
    house: House, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, _ = folders
    files = reissued(ours, "b", tmp_path / "b")
    tls = PeerTLS(*files)
    a, b = await house.node("a"), await house.node("b", OwnTls(tls))
    await a.meet(b)
    await b.meet(a)
    tls.follow(PeerTLS(*files, revoke(ours, tmp_path / "crl")))
    assert await a.wire.wait(a.pool.ask(b.node_id, Register, b"said")) == b"said"
    tls.follow(PeerTLS(*files, revoke(ours, tmp_path / "crl", "a")))
    await a.wire.until(lambda: a.handler.seen("lost"), "the end of what a dialled")
    await a.wire.until(lambda: b.handler.seen("lost"), "the end of what b dialled")
    assert "revoked" in b.handler.seen("lost")[0][5]
    assert not b.listener.peers


def test_a_list_that_can_not_be_used_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = folders
    files = (ours / "a.crt", ours / "a.key", ours / "ca.crt")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    broken = tmp_path / "broken"
    broken.write_bytes(revoke(ours, tmp_path / "good", "a").read_bytes().replace(b"M", b"N"))
    for bad in (empty, broken, tmp_path / "gone", revoke(theirs, tmp_path / "theirs", "a"),
                revoke(ours, tmp_path / "forged", "a", signed_in=theirs)):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{bad}: .* of revoked certificates"):
            PeerTLS(*files, bad)
    PeerTLS(*files, tmp_path / "good")

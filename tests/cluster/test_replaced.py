"""Secret, authority and certificates of the peers are replaced under load, as docs/howto/replace-the-secret.md says."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.clusters import PEER_OFFSET, Cluster
from tests.cluster.replicated import wait_settled
from tests.cluster.test_peer_tls import NAMES, certificates, make_ca
from tests.support.certificates import HOSTS, revoke
from tests.support.harness import until
from tests.support.memory_tokens import token_of
from tq_node.cli.tokens_file import written
from tq_node.tokens import Role, TokenEntry, hash_of
from tq_node.wire import bounds

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
TAKEN = "the changed file counts from now on"


class Calls:
    """What a few callers asked all nodes, one call after the other; ``failed``: what was not answered with success.

    :param tls: ask by HTTPS. :param token: what to show, asked for before each call.
    """

    def __init__(
        self, ports: dict[str, int], tls: ssl.SSLContext | None = None, token: Callable[[], str] | None = None
    ) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._ports, self._tls, self._token = ports, tls, token
        self._over = threading.Event()

    def ask(self, name: str) -> None:
        connection = self._connection(self._ports[name])
        for number in itertools.count():
            if self._over.is_set():
                break
            task_id = f"{name}-{number}"
            for method, path, body in (
                ("POST", "/tasks/submit", f'{{"id":"{task_id}","type":"email","payload":{{}}}}'),
                ("GET", f"/tasks/status?id={task_id}", None),
                ("GET", "/tasks/list?limit=5", None),
            ):
                try:
                    shown = {} if self._token is None else {"Authorization": f"Bearer {self._token()}"}
                    connection.request(method, path, body, shown)
                    answer = connection.getresponse()
                    said = answer.read()
                except (OSError, http.client.HTTPException) as why:
                    self.failed.append(f"{method} {path}: {why!r}")
                    connection.close()
                else:
                    if answer.status >= 300:
                        self.failed.append(f"{method} {path}: {answer.status} {said[:200]!r}")
                self.done += 1
            time.sleep(0.05)
        connection.close()

    def _connection(self, port: int) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=self._tls)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask, args=(name,)) for name in self._ports]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()


def put(path: Path, content: bytes) -> None:
    """Replace the file in one step."""
    beside = path.with_suffix(".next")
    beside.write_bytes(content)
    beside.chmod(0o600)
    os.replace(beside, path)


def shown_to(authority: Path, port: int) -> bool:
    """Whether a peer port shows a certificate of that authority."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        try:
            context.wrap_socket(plain).close()
        except ssl.SSLCertVerificationError:
            return False
    return True


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_no_call_fails(make_cluster: MakeCluster, tmp_path: Path, is_short: bool) -> None:
    """``is_short``: not until all that the old secret has opened were closed."""
    old, new = make_ca(tmp_path / "old", *NAMES), make_ca(tmp_path / "new", *NAMES)
    both = (old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes()
    secrets = [b"the secret that was in use so far\n", b"the secret that takes its place\n"]
    files = {name: tmp_path / name for name in NAMES}

    def options(name: str) -> list[str]:
        home = files[name]
        return [
            "--secret-file", str(home / "secret"), "--peer-cert", str(home / "crt"), "--peer-key", str(home / "key"),
            "--peer-ca", str(home / "ca"),
        ]  # fmt: skip

    for name, home in files.items():
        home.mkdir()
        put(home / "secret", secrets[0])
        for kind in ("crt", "key"):
            put(home / kind, (old / f"{name}.{kind}").read_bytes())
        put(home / "ca", (old / "ca.crt").read_bytes())
    cluster = make_cluster(own_options=options)
    cluster.start()
    view = cluster.wait_whole()
    cluster.wait_ready()
    wait_settled(cluster)  # a partition that changes hands may answer 503, whatever its nodes prove

    def said(step: int, option: str) -> Callable[[], bool]:
        return lambda: all(cluster.log(name).count(f"{option}: {TAKEN}") >= step for name in NAMES)

    calls = Calls(cluster.ports)
    with calls.going_on():
        for step, secret in enumerate((secrets[0] + secrets[1], secrets[1] + secrets[0], secrets[1]), 1):
            for name, home in files.items():
                put(home / "secret", secret)
                if step == 2:
                    for kind in ("crt", "key"):
                        put(home / kind, (new / f"{name}.{kind}").read_bytes())
                else:
                    put(home / "ca", both if step == 1 else (new / "ca.crt").read_bytes())
            began = time.monotonic()
            until(said(step, "--secret-file"), what=f"secrets of step {step} are taken up")
            until(said(step, "--peer-cert"), what=f"certificates of step {step} are taken up")
            print(f"\n  step {step}: taken up by all nodes after {time.monotonic() - began:.1f} s")
            time.sleep(bounds.BULK_PING_S + 1.0)  # the page says so: open connections are proven anew meanwhile
        if not is_short:
            time.sleep(bounds.IDLE_S_MAX + bounds.RENEW_S_MAX + 2.0)
    print(f"  {calls.done} calls, {len(calls.failed)} failed")
    assert calls.failed == []
    assert calls.done > 100
    assert cluster.wait_whole() == view, "nobody was away"
    for port in cluster.ports.values():
        assert shown_to(new / "ca.crt", port + PEER_OFFSET)
        assert not shown_to(old / "ca.crt", port + PEER_OFFSET)

    put(files["node-2"] / "secret", b"short\n")
    until(lambda: b"files_unusable" in cluster["node-2"].get("/ready").body, what="it is said of the broken file")
    cluster.stop()
    cluster.assert_logs_are_clean("the changed file is not used|refused a connection")


@pytest.mark.long
def test_no_call_fails_by_https_while_all_that_is_shown_changes(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Certificates of both ports, their authority, the secret, tokens of the table and of the file; no client tries again."""
    hosts = [f"{name}={HOSTS}" for name in NAMES]
    old, new = make_ca(tmp_path / "old", *hosts), make_ca(tmp_path / "new", *hosts)
    both = tmp_path / "both"
    both.write_bytes((old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes())
    files, glass = {name: tmp_path / name for name in NAMES}, [token_of(21), token_of(22)]

    def tokens(*shown: str) -> bytes:
        return "\n".join(
            written(TokenEntry(f"glass-{one[-4:]}", hash_of(one), (Role.ADMIN,))) for one in shown
        ).encode()

    def options(name: str) -> list[str]:
        home = files[name]
        return [
            "--secret-file", str(home / "secret"), "--peer-cert", str(home / "crt"), "--peer-key", str(home / "key"),
            "--peer-ca", str(home / "ca"), "--http-cert", str(home / "crt"), "--http-key", str(home / "key"),
            "--ca", str(both), "--tokens-file", str(home / "tokens"),
        ]  # fmt: skip

    def change(secret: bytes, folder: Path, authority: Path, shown: bytes) -> None:
        for name, home in files.items():
            for kind, content in (
                ("secret", secret), ("ca", authority.read_bytes()), ("tokens", shown),
                ("crt", (folder / f"{name}.crt").read_bytes()), ("key", (folder / f"{name}.key").read_bytes()),
            ):  # fmt: skip
                put(home / kind, content)

    for home in files.values():
        home.mkdir()
    first, second = b"the secret that was in use so far\n", b"the secret that takes its place\n"
    change(first, old, old / "ca.crt", tokens(glass[0]))
    trusted = ssl.create_default_context(cafile=str(both))
    cluster = make_cluster(own_options=options, tls=trusted, token=glass[0])
    cluster.start()
    view = cluster.wait_whole()
    cluster.wait_ready()
    wait_settled(cluster)

    def made(name: str) -> str:
        answer = cluster["node-1"].post("/tokens/put", {"name": name, "roles": ["operate"]})
        token = answer.json["token"]
        assert isinstance(token, str)
        return token

    def said(option: str, times: int) -> Callable[[], bool]:
        return lambda: all(cluster.log(name).count(f"{option}: {TAKEN}") >= times for name in NAMES)

    shown = [made("caller-0")]
    calls = Calls(cluster.ports, trusted, lambda: shown[-1])
    with calls.going_on():
        for step, changed in enumerate((
            (first + second, old, both, tokens(*glass)),
            (second + first, new, both, tokens(*glass)),
            (second, new, new / "ca.crt", tokens(glass[1])),
        ), 1):  # fmt: skip
            if step == 3:
                for process in cluster.processes.values():
                    process.token = glass[1]
            change(*changed)
            for option, times in (("--secret-file", step), ("--peer-cert", step), ("--http-cert", int(step > 1))):
                until(said(option, times), what=f"{option} of step {step} is taken up")
            shown.append(made(f"caller-{step}"))
            time.sleep(bounds.BULK_PING_S + 1.0)
            assert cluster["node-2"].post(f"/tokens/revoke?name=caller-{step - 1}").status == 200
        so_far = calls.done
        until(lambda: calls.done > so_far + 30, what="calls go on")
    print(f"\n  {calls.done} calls by HTTPS, {len(calls.failed)} failed")
    assert calls.failed == []
    assert calls.done > 100
    assert cluster.wait_whole() == view, "nobody was away"
    for port in cluster.ports.values():
        for at in (port, port + PEER_OFFSET):
            assert shown_to(new / "ca.crt", at)
            assert not shown_to(old / "ca.crt", at)
    cluster.stop()


@pytest.mark.long
def test_a_certificate_that_is_revoked_while_all_run_cuts_its_node_off(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    folder = make_ca(tmp_path / "ca", *NAMES)
    crl = revoke(folder, tmp_path / "crl")

    def options(name: str) -> list[str]:
        return [*certificates(folder, name), "--peer-crl", str(crl)]

    cluster = make_cluster(own_options=options)
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    revoke(folder, tmp_path / "next", "node-3")
    os.replace(tmp_path / "next", crl)
    cluster.wait(
        lambda view: view.statuses["node-3"] == "down" and view.leader in ("node-1", "node-2"),
        names=("node-1", "node-2"),
        what="node-3 is cut off",
    )
    assert cluster["node-1"].submit("email")
    cluster.stop()

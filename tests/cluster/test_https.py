"""Three nodes that speak HTTPS, joined and asked by it, while their certificates change."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.support.certificates import HOSTS, make_ca, put, trusting
from tests.support.harness import PROJECT, NodeProcess, clean_environment, free_port, until
from tq_node.cli.tokens_file import written
from tq_node.client import Queue, TaskQueueError
from tq_node.tokens import Role, TokenEntry, encode, hash_of

pytestmark = pytest.mark.cluster
NAMES = ("node-1", "node-2", "node-3")
NEXT = ("next-1", "next-2", "next-3")
(_check,) = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
HEALTH_CHECK = json.loads(_check)
TOKENS = {name: encode(bytes([number]) * 32) for number, name in enumerate(("tests", "first", "second"))}
MakeCluster = Callable[..., Cluster]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_ca(tmp_path / "ca", *(f"{name}={HOSTS}" for name in (*NAMES, *NEXT)))
    for name in NAMES:
        (tmp_path / name).mkdir()
        put(made, name, tmp_path / name)
    return made


def tell_tokens(path: Path, *names: str) -> None:
    """Have the nodes' file hold these tokens and no others."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text("\n".join(written(TokenEntry(name, hash_of(TOKENS[name]), (Role.ADMIN,))) for name in names))
    os.replace(new, path)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    tell_tokens(tmp_path / "tokens.toml", "tests", "first", "second")
    return tmp_path / "tokens.toml"


@pytest.fixture
def cluster(make_cluster: MakeCluster, folder: Path, tokens: Path, tmp_path: Path) -> Cluster:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"a secret of these three nodes alone")

    def options(name: str) -> list[str]:
        place = tmp_path / name
        return [
            "--http-cert", str(place / "tls.crt"), "--http-key", str(place / "tls.key"), "--ca", str(folder / "ca.crt"),
            "--tokens-file", str(tokens), "--secret-file", str(secret),
        ]  # fmt: skip

    made = make_cluster(own_options=options, tls=trusting(folder), token=TOKENS["tests"])
    made.start()
    made.wait_whole()
    made.wait_ready()
    return made


def shown(port: int, folder: Path) -> object:
    """The serial number of the certificate that a new connection sees."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        trusting(folder).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        certificate: Any = tls.getpeercert()
        return certificate["serialNumber"]


def shows(node: NodeProcess, token: str) -> int:
    return node.get("/tasks/stats", headers={"Authorization": f"Bearer {TOKENS[token]}"}).status


def console(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tq_tui", *arguments], env=clean_environment(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


class Load(threading.Thread):
    """Submits, one after another, to all nodes, until told to end; remembers what failed."""

    def __init__(self, port: int, folder: Path, token_file: Path) -> None:
        super().__init__(daemon=True)
        self.queue = Queue(f"https://localhost:{port}", ca=folder / "ca.crt", token_file=token_file)
        self.over = threading.Event()
        self.failed: list[BaseException] = []
        self.done = 0

    def run(self) -> None:
        with self.queue:
            while not self.over.is_set():
                try:
                    self.queue.submit("email")
                    self.done += 1
                except Exception as why:
                    self.failed.append(why)

    def end(self) -> None:
        self.over.set()
        self.join(30)


def test_certificates_and_tokens_change_under_load_and_nobody_notices(
    cluster: Cluster, folder: Path, tokens: Path, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKENS["first"])
    # What /cluster says is what clients go by.
    ports = cluster.ports
    told = {one["name"]: one for one in cluster["node-1"].get("/cluster").json["cluster"]["nodes"]}
    for name in NAMES:
        assert told[name]["services"]["http"] == f"https://127.0.0.1:{ports[name]}"
        assert told[name]["ip"] == f"127.0.0.1:{ports[name]}"

    page = cluster["node-1"].get("/").body.decode()
    assert f"  https://127.0.0.1:{ports['node-1']}/tasks/submit" in page
    for name, code in (("node-2", 0), ("nobody", 1)):
        environment = {
            "TQ_HTTP": str(ports.get(name) or free_port()),
            "TQ_HTTP_CERT": str(tmp_path / "node-2" / "tls.crt"), "TQ_HTTP_KEY": str(tmp_path / "node-2" / "tls.key"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *HEALTH_CHECK[1:]], env=environment, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == code, done

    # The console, and who speaks plain HTTP.
    shown_by = ("--ca", str(folder / "ca.crt"), "--token-file", str(token_file), f"https://localhost:{ports['node-1']}")
    until(lambda: console("--once", *shown_by).returncode == 0, deadline_s=60, what="healthy")
    seen = console("--json", *shown_by)
    assert {one["name"] for one in json.loads(seen.stdout)["nodes"]} == set(NAMES)
    doubtful = console("--once", f"https://localhost:{ports['node-1']}")
    assert doubtful.returncode == 2, "no authority of the system knows this certificate"
    plain = http.client.HTTPConnection("127.0.0.1", ports["node-2"], timeout=5)
    plain.request("GET", "/health")
    answer = plain.getresponse()
    assert (answer.status, "https://" in json.loads(answer.read())["detail"]) == (400, True)
    plain.close()

    # Certificates of all nodes change, one is broken on the way, while calls go on.
    load = Load(ports["node-1"], folder, token_file)
    load.start()
    until(lambda: load.done > 20 and len(load.queue.addresses) == 3, what="the others are learnt")
    opened = http.client.HTTPSConnection("127.0.0.1", ports["node-3"], timeout=5, context=trusting(folder))
    opened.connect()
    for number, name in enumerate(NAMES):
        before = shown(ports[name], folder)
        broken = tmp_path / name / "broken"
        broken.write_text("no certificate")
        os.replace(broken, tmp_path / name / "tls.crt")
        until(lambda name=name: "files_unusable" in cluster[name].get("/ready").body.decode(), what="the note")  # type: ignore[misc]
        assert shown(ports[name], folder) == before
        changed_s = time.monotonic()
        put(folder, NEXT[number], tmp_path / name)
        until(lambda port=ports[name], old=before: shown(port, folder) != old, what="the new one")  # type: ignore[misc]
        assert time.monotonic() - changed_s < 2.0
        assert "files_unusable" not in cluster[name].get("/ready").body.decode()
    opened.request("GET", "/health")
    assert opened.getresponse().status == 200
    opened.close()
    # The token changes: the clients' file first, then what the nodes know.
    (tmp_path / "new").write_text(TOKENS["second"])
    os.replace(tmp_path / "new", token_file)
    so_far, began_s = load.done, time.monotonic()
    until(lambda: load.done > so_far + 20 and time.monotonic() - began_s > 1.5, what="the client has looked")
    tell_tokens(tokens, "tests", "second")
    for name in NAMES:
        until(lambda name=name: shows(cluster[name], "first") == 401, what="the first one is not known any more")  # type: ignore[misc]
        assert shows(cluster[name], "second") == 200
    so_far = load.done
    until(lambda: load.done > so_far + 20, what="calls go on")
    load.end()
    assert not load.failed, load.failed[:3]

    # Who was stopped comes back, and joins nobody anew.
    cluster.stop("node-3")
    cluster.start("node-3")
    cluster.wait_whole()
    cluster.assert_logs_are_clean(allow="the changed file is not used|has no handlers|the reactor was blocked for")


def test_a_joiner_asks_only_whom_its_authority_vouches_for(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    other = make_ca(tmp_path / "other", "x")
    founder = f"localhost:{cluster.ports['node-1']}"
    stranger = Cluster(cluster.nodes, ["node-4"], home=cluster.nodes.directory / "home-of-4")
    for address, ca, said in (
        (f"https://{founder}", other, "certificate verify failed"),
        (founder, folder, "this port is for HTTPS"),
    ):
        stranger.start("node-4", extra=["--join", address, "--ca", str(ca / "ca.crt")])
        until(lambda said=said: said in stranger.log("node-4"), what=said, deadline_s=20)  # type: ignore[misc]
        stranger.stop("node-4")
    stranger.close()


@pytest.mark.long
def test_nodes_that_serve_known_clients_alone_let_in_a_joiner_with_a_certificate(
    make_cluster: MakeCluster, folder: Path, tmp_path: Path
) -> None:
    """It shows the one that it has for its own clients. Who has none gets no answer, by the client library neither."""
    authority = str(folder / "ca.crt")

    def options(name: str) -> list[str]:
        files = (("--http-cert", "tls.crt"), ("--http-key", "tls.key"))
        own = [word for option, file in files for word in (option, str(tmp_path / name / file))]
        return [*own, "--http-client-ca", authority, "--ca", authority]

    made = make_cluster(("node-1", "node-2"), own_options=options, tls=trusting(folder, "next-1"))
    made.start()
    made.wait_whole(voters=1, members=("node-1", "node-2"))
    address = f"https://localhost:{made.ports['node-1']}"
    with Queue(address, tls=trusting(folder, "next-2"), discover=False) as known:
        known.submit("email")
    with Queue(address, ca=authority, discover=False, deadline=2.0) as unknown, pytest.raises(TaskQueueError):
        unknown.submit("email")

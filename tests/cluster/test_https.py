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
from tests.support.harness import PROJECT, clean_environment, free_port, until
from tq_node.client import Queue

pytestmark = pytest.mark.cluster
NAMES = ("node-1", "node-2", "node-3")
NEXT = ("next-1", "next-2", "next-3")
(_check,) = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
HEALTH_CHECK = json.loads(_check)
MakeCluster = Callable[..., Cluster]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_ca(tmp_path / "ca", *(f"{name}={HOSTS}" for name in (*NAMES, *NEXT)))
    for name in NAMES:
        (tmp_path / name).mkdir()
        put(made, name, tmp_path / name)
    return made


@pytest.fixture
def cluster(make_cluster: MakeCluster, folder: Path, tmp_path: Path) -> Cluster:
    def options(name: str) -> list[str]:
        place = tmp_path / name
        return [
            "--http-cert", str(place / "tls.crt"), "--http-key", str(place / "tls.key"), "--ca", str(folder / "ca.crt"),
        ]  # fmt: skip

    made = make_cluster(own_options=options, tls=trusting(folder))
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


def console(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tq_tui", *arguments], env=clean_environment(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


class Load(threading.Thread):
    """Submits, one after another, to all nodes, until told to end; remembers what failed."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.queue = Queue(f"https://localhost:{port}", ca=folder / "ca.crt")
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


def test_certificates_change_under_load_and_nobody_notices(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
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
    seen = console("--json", "--ca", str(folder / "ca.crt"), f"https://localhost:{ports['node-1']}")
    assert seen.returncode == 0, seen
    assert {one["name"] for one in json.loads(seen.stdout)["nodes"]} == set(NAMES)
    doubtful = console("--once", f"https://localhost:{ports['node-1']}")
    assert doubtful.returncode == 2, "no authority of the system knows this certificate"
    plain = http.client.HTTPConnection("127.0.0.1", ports["node-2"], timeout=5)
    plain.request("GET", "/health")
    answer = plain.getresponse()
    assert (answer.status, "https://" in json.loads(answer.read())["detail"]) == (400, True)
    plain.close()

    # Certificates of all nodes change, one is broken on the way, while calls go on.
    load = Load(ports["node-1"], folder)
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
        assert cluster[name].get("/ready").json["notes"] == []
    opened.request("GET", "/health")
    assert opened.getresponse().status == 200
    opened.close()
    so_far = load.done
    until(lambda: load.done > so_far + 20, what="calls go on")
    load.end()
    assert not load.failed, load.failed[:3]

    # Who was stopped comes back, and joins nobody anew.
    cluster.stop("node-3")
    cluster.start("node-3")
    cluster.wait_whole()
    cluster.assert_logs_are_clean(allow="files_unusable|the changed file is not used")


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

"""A5 with processes: who has the secret says what ended nodes for good, first as nobody, then as a member that is down."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.clusters import PEER_OFFSET, Cluster
from tests.support.harness import PROJECT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NOBODY = "9" * 32
FAILED_MARK = "taskqueue.sqlite3.failed"

CODE = """
import sys
from twisted.internet import task
from tests.support.intruder import Intruder, say_everything, who_is_at
from twisted.internet.defer import ensureDeferred
cluster, secret, name, node_id, incarnation, *addresses = sys.argv[1:]
secret = bytes.fromhex(secret)
async def main(reactor):
    if name == "who":
        print(await who_is_at(cluster, secret, addresses[0]))
        return
    for address in addresses:
        intruder = Intruder(cluster, secret, name, node_id, incarnation=int(incarnation))
        print(" ".join(await say_everything(intruder, address)))
task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def intrude(*arguments: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize("restarted", [1, pytest.param(3, marks=pytest.mark.long)])
def test_who_has_the_secret_ends_no_node_and_marks_no_store(cluster: Cluster, restarted: int) -> None:
    handed = cluster["node-1"].post("/cluster/join").json
    about = (handed["cluster_id"], handed["secret"])
    peers = {name: f"127.0.0.1:{port + PEER_OFFSET}" for name, port in cluster.ports.items()}
    for codes in intrude(*about, "mallory", NOBODY, "1", *peers.values()):
        assert codes.split() == ["malformed_box", *["not_ready"] * 4]
    assert sorted(cluster.running) == sorted(cluster.ports)

    victims = [cluster.leader(), cluster.others(cluster.leader())[0]]
    (away,) = set(cluster.ports) - set(victims)
    ((node_id, incarnation),) = [line.split() for line in intrude(*about, "who", "", "0", peers[away])]
    cluster[away].kill9()
    cluster.wait_gone(away)
    for codes in intrude(*about, away, node_id, str(int(incarnation) + 1), *(peers[name] for name in victims)):
        told = codes.split()
        assert told[:4] == ["malformed_box"] * 4
        assert told[4].startswith("{'results'"), "a batch is answered; its calls are refused one by one"
    assert sorted(cluster.running) == sorted(victims)
    cluster.start(away)
    cluster.wait_whole()
    assert not any((cluster.data(name) / FAILED_MARK).exists() for name in cluster.ports)
    for name in (*victims, away)[:restarted]:
        cluster.stop(name)
        cluster.start(name)
        cluster.wait_whole()
    cluster.wait_ready()

"""Contract, section 4: what the cluster looks like; health, readiness, metrics, pages. The orders: ``test_cluster_orders``."""

from __future__ import annotations

import pytest
from msgspec import UNSET
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.unit.tq_node.api.talk import World
from tq_node.errors import DiskReserve, NotReady
from tq_node.facade import NotReadyReason, ReadyNote
from tq_node.types import PartitionMove


class TestCluster:
    def test_the_shape(self, world: World) -> None:
        reply = world.get("/cluster")
        cluster = reply.json["cluster"]
        assert cluster.keys() >= {"id", "name", "nodes", "leader", "term", "config"}
        assert cluster["nodes"] == [
            {
                "id": "node-1",
                "ip": "127.0.0.1:8080",
                "name": "node-1",
                "status": "active",
                "voter": True,
                "services": {"http": "127.0.0.1:8080", "peer": "127.0.0.1:9080"},
            }
        ]
        assert (cluster["leader"], cluster["term"]) == ("node-1", 1)
        assert cluster["config"] == {"partition_count": 2, "replication_factor": 3}
        # Scripts count nodes by this text.
        assert reply.body.count(b'"id":"node-') == 1

    def test_partitions(self, world: World) -> None:
        first, second = world.get("/cluster/partitions").json["partitions"]
        assert (first["partition"], second["partition"]) == (0, 1)
        assert first.keys() == {
            *("partition", "primary", "replicas", "in_sync", "epoch", "version", "last_sequence", "committed_sequence"),
            *("lag", "adding", "removing", "state"),
        }

    def test_partitions_say_null_where_nobody_knows(self, three: World) -> None:
        three.queue.members.set_partition(
            0, primary=None, in_sync=[], state="offline", last_sequence=None, committed_sequence=None, lag={}
        )
        first, _ = three.get("/cluster/partitions").json["partitions"]
        assert (first["primary"], first["last_sequence"], first["committed_sequence"]) == (None, None, None)
        assert (first["lag"], first["state"], first["replicas"]) == ({}, "offline", ["node-2", "node-3"])

    def test_a_partition_says_why_it_waits_only_where_it_does(self, three: World) -> None:
        three.queue.members.set_partition(1, waiting="no target")
        first, second = three.get("/cluster/partitions").json["partitions"]
        assert "waiting" not in first
        assert second["waiting"] == "no target"

    def test_a_partition_shows_its_move_only_while_it_moves(self, three: World) -> None:
        three.queue.members.set_partition(0, move=PartitionMove("copying", None, None))
        three.queue.members.set_partition(1, move=PartitionMove("copying", 300, 25))
        first, second = three.get("/cluster/partitions").json["partitions"]
        assert first["move"] == {"stage": "copying", "bytes_left": None, "percent": None}
        assert second["move"] == {"stage": "copying", "bytes_left": 300, "percent": 25}
        three.queue.members.set_partition(1, move=UNSET)
        assert "move" not in three.get("/cluster/partitions").json["partitions"][1]

    def test_paused_queues_are_shown(self, three: World) -> None:
        assert three.get("/cluster").json["cluster"]["paused_queues"] == []
        for queue in ("mail", "images"):
            assert three.post(f"/tasks/pause?queue={queue}").status == 200
        assert three.get("/cluster").json["cluster"]["paused_queues"] == ["images", "mail"]

    def test_each_node_has_one_id_and_nothing_else_has(self, three: World) -> None:
        reply = three.get("/cluster")
        for name in ("node-1", "node-2", "node-3"):
            assert reply.body.count(b'"id":"%b"' % name.encode()) == 1
        assert reply.body.count(b'"id":"node-') == 3
        assert reply.body.count(b'"id":') == 4  # and the cluster's own, which is no node's
        assert reply.json["cluster"]["id"] == "f" * 32

    @pytest.mark.parametrize("status", ["active", "suspect", "down", "joining", "draining"])
    def test_every_node_has_status_and_vote(self, three: World, status: str) -> None:
        three.queue.members.set_status("node-2", status)
        nodes = {node["name"]: node for node in three.get("/cluster").json["cluster"]["nodes"]}
        assert {name: node["status"] for name, node in nodes.items()} == {
            "node-1": "active",
            "node-2": status,
            "node-3": "active",
        }
        assert all(node["voter"] is True for node in nodes.values())
        assert nodes["node-3"]["services"] == {"http": "127.0.0.1:8082", "peer": "127.0.0.1:9082"}

    def test_a_fourth_node_is_no_voter(self) -> None:
        world = World(nodes=[f"node-{number}" for number in range(1, 5)])
        assert [node["voter"] for node in world.get("/cluster").json["cluster"]["nodes"]] == [True, True, True, False]
        world.close()

    def test_without_a_leader_the_term_stays(self, three: World) -> None:
        three.queue.members.set_status("node-1", "down")
        cluster = three.get("/cluster").json["cluster"]
        assert cluster["leader"] is None
        assert cluster["term"] == 1

    def test_snapshot(self, world: World) -> None:
        assert world.post("/cluster/snapshot").json == {
            "success": True,
            "node": "node-1",
            "path": "/data/node-1/backups/1",
            "kept": ["/data/node-1/backups/1"],
        }
        world.queue.fail_next("backup", DiskReserve())
        assert world.post("/cluster/snapshot").code == "disk_full"


class TestHealth:
    @pytest.mark.parametrize("path", ["/health", "/livez", "/livez?verbose"])
    def test_alive(self, world: World, path: str) -> None:
        world.queue.reasons.append(NotReadyReason("recovering", "the log is being read"))
        assert world.get(path).json == {"status": "ok", "node": "node-1", "version": "1.2.3"}

    @pytest.mark.parametrize("path", ["/ready", "/readyz", "/readyz?exclude=x"])
    def test_ready(self, world: World, path: str) -> None:
        assert world.get(path).body == b'{"ready":true,"reasons":[],"notes":[]}'
        world.queue.reasons.append(NotReadyReason("recovering", "the log is being read"))
        reply = world.get(path)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert (
            reply.body
            == b'{"ready":false,"reasons":[{"code":"recovering","detail":"the log is being read"}],"notes":[]}'
        )

    def test_every_reason_is_listed(self, world: World) -> None:
        codes = ["joining", "no_controller", "not_active", "draining", "disk_full"]
        world.queue.reasons += [NotReadyReason(code, f"because of {code}") for code in codes]
        for path in ("/ready", "/readyz"):
            reply = world.get(path)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json == {
                "ready": False,
                "reasons": [{"code": code, "detail": f"because of {code}"} for code in codes],
                "notes": [],
            }

    def test_notes_keep_nobody_from_being_served(self, world: World) -> None:
        world.queue.ready_notes.append(ReadyNote("no_workers", "none starts"))
        reply = world.get("/ready")
        assert (reply.status, reply.json) == (
            200, {"ready": True, "reasons": [], "notes": [{"code": "no_workers", "detail": "none starts"}]},
        )  # fmt: skip

    def test_a_node_without_a_leader_lives(self, three: World) -> None:
        three.queue.members.set_status("node-1", "down")
        three.queue.reasons.append(NotReadyReason("no_controller", "no leader is known"))
        assert three.get("/ready").status == 503
        assert three.get("/health").status == 200

    @pytest.mark.parametrize("path", ["/health", "/livez"])
    def test_health_asks_nobody(self, world: World, path: str) -> None:
        world.queue.hold()
        assert world.get(path).status == 200
        assert not world.queue.calls
        world.queue.release()


class TestMetrics:
    def test_prometheus_can_read_it(self, world: World) -> None:
        world.post("/tasks/pause?queue=mail")
        world.submit(queue="mail")
        world.metrics.queue_seen("mail")
        world.clock.advance(7)
        reply = world.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in parse_text(reply.body.decode())
            for sample in family.samples
        }
        assert samples["taskqueue_queue_oldest_ready_age_seconds", "mail"] == 7.0
        assert samples["taskqueue_queue_paused", "mail"] == 1.0
        assert ("process_resident_memory_bytes",) in samples

    def test_openmetrics_on_request(self, world: World) -> None:
        reply = world.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert list(parse_openmetrics(reply.body.decode()))

    def test_without_the_ages_the_rest_is_shown(self, world: World) -> None:
        world.queue.fail_next("oldest_pending_age_s", NotReady())
        assert world.get("/metrics").status == 200


class TestPages:
    def test_home_is_one_file_for_people(self, world: World) -> None:
        reply = world.get("/")
        text = reply.body.decode()
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "node-1" in text
        assert "http://127.0.0.1:8080/tasks/submit" in text
        assert "<script" not in text
        assert "src=" not in text

    def test_names_are_escaped(self, world: World) -> None:
        world.queue.reasons.append(NotReadyReason("x", "<b>&</b>"))
        assert b"&lt;b&gt;&amp;&lt;/b&gt;" in world.get("/").body

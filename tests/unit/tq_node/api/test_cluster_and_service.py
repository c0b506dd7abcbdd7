"""Contract, section 4, for one node; health, readiness, metrics, pages."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.unit.tq_node.api.talk import World
from tq_node.errors import DiskReserve, NotReady
from tq_node.facade import NotReadyReason


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

    def test_shutdown_comes_after_the_answer(self, world: World) -> None:
        client = world.connect()
        client.request("POST", "/cluster/shutdown?node=node-1")
        assert client.replies()[0].status == 202
        assert client.replies()[0].body == b'{"success":true,"node":"node-1"}'
        assert world.shutdowns == []
        world.clock.advance(0)
        assert len(world.shutdowns) == 1

    def test_snapshot(self, world: World) -> None:
        assert world.post("/cluster/snapshot").json == {
            "success": True,
            "node": "node-1",
            "path": "/data/node-1/backups/1",
        }
        world.queue.fail_next("backup", DiskReserve())
        assert world.post("/cluster/snapshot").code == "disk_full"

    def test_there_is_nothing_to_rebalance(self, world: World) -> None:
        assert world.post("/cluster/rebalance").status == 202

    @pytest.mark.parametrize("call", ["drain?", "remove?", "unsafe-recover?partition=0&"])
    def test_the_last_node_stays(self, world: World, call: str) -> None:
        reply = world.post(f"/cluster/{call}node=node-1")
        assert (reply.status, reply.code) == (409, "last_node")

    @pytest.mark.parametrize("call", ["drain?", "remove?", "shutdown?", "unsafe-recover?partition=0&"])
    def test_an_unknown_node(self, world: World, call: str) -> None:
        reply = world.post(f"/cluster/{call}node=node-9")
        assert (reply.status, reply.code) == (404, "not_found")
        assert world.post(f"/cluster/{call}").code == "bad_parameter"

    @pytest.mark.parametrize(
        ("partition", "code"),
        [
            ("2", "not_found"),
            ("-1", "bad_parameter"),
            ("x", "bad_parameter"),
            ("", "bad_parameter"),
            ("9" * 20, "bad_parameter"),
        ],
    )
    def test_an_unknown_partition(self, world: World, partition: str, code: str) -> None:
        assert world.post(f"/cluster/unsafe-recover?node=node-1&partition={partition}").code == code


class TestHealth:
    @pytest.mark.parametrize("path", ["/health", "/livez", "/livez?verbose"])
    def test_alive(self, world: World, path: str) -> None:
        world.queue.reasons.append(NotReadyReason("recovering", "the log is being read"))
        assert world.get(path).json == {"status": "ok", "node": "node-1", "version": "1.2.3"}

    @pytest.mark.parametrize("path", ["/ready", "/readyz", "/readyz?exclude=x"])
    def test_ready(self, world: World, path: str) -> None:
        assert world.get(path).body == b'{"ready":true,"reasons":[]}'
        world.queue.reasons.append(NotReadyReason("recovering", "the log is being read"))
        reply = world.get(path)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert reply.body == b'{"ready":false,"reasons":[{"code":"recovering","detail":"the log is being read"}]}'


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

    def test_without_the_ages_the_rest_is_told(self, world: World) -> None:
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

"""A1: bodies within the documented limits that are dear to read, good ones and bad ones."""

from __future__ import annotations

import json
import threading

from tests.attacks.harness import Stage, attack
from tests.support.harness import Answer

NDJSON = {"Content-Type": "application/x-ndjson"}
DEADLINE_S = 120.0


def batch(stage: Stage, body: bytes, *, ndjson: bool = False) -> Answer:
    answer = stage.node.post("/tasks/batch", body, headers=NDJSON if ndjson else None, deadline_s=DEADLINE_S)
    assert answer.status in (200, 422, 429), answer.body[:300]
    return answer


def items(piece: bytes, count: int = 10_000) -> bytes:
    return b'{"tasks":[%b]}' % b",".join([piece] * count)


@attack("A1 batch of 10,000 empty items, three times")
def empty_items(stage: Stage) -> None:
    for _ in range(3):
        answer = batch(stage, items(b"{}"))
        assert answer.json["rejected"] == 10_000
        assert answer.json["results"][99]["error"]["field"] == "/tasks/99/type"


@attack("A1 batch of 10,000 items with an unknown field", is_long=True)
def unknown_fields(stage: Stage) -> None:
    assert batch(stage, items(b'{"x":1}')).json["rejected"] == 10_000


@attack("A1 lines of 10,000 empty items", is_long=True)
def empty_lines(stage: Stage) -> None:
    assert batch(stage, b"{}\n" * 10_000, ndjson=True).json["rejected"] == 10_000


@attack("A1 batch of 16 payloads of 300,000 empty lists each", is_long=True)
def many_lists(stage: Stage) -> None:
    payload = b"[%b]" % b",".join([b"[]"] * 300_000)
    batch(stage, items(b'{"type":"email","payload":%b}' % payload, 16))


@attack("A1 batch of 16 payloads of 80,000 keys each")
def many_keys(stage: Stage) -> None:
    payload = json.dumps({f"k{number:06}": 1 for number in range(80_000)}, separators=(",", ":")).encode()
    batch(stage, items(b'{"type":"email","payload":%b,"delay":3600}' % payload, 16)[: 16 << 20])


@attack("A1 batch of 10,000 good tasks with tags and a time")
def good_tasks(stage: Stage) -> None:
    piece = (
        b'{"type":"email","payload":{"to":"user@example.com","n":[1,2,3]},"delay":86400,"priority":3,'
        b'"tags":{"customer":"acme","region":"eu"},"backoff":{"kind":"linear","base":2}}'
    )
    answer = batch(stage, items(piece))
    assert answer.json["accepted"] == 10_000


@attack("A1 batch of 16 MiB that is one string, and one that is no JSON", is_long=True)
def long_strings(stage: Stage) -> None:
    size = (16 << 20) - 200
    (result,) = batch(stage, b'{"tasks":[{"type":"%b"}]}' % (b"x" * size)).json["results"]
    assert result["error"]["code"] == "payload_too_large"
    broken = stage.node.post("/tasks/batch", b'{"tasks":[%b' % (b"[]," * (size // 3)), deadline_s=DEADLINE_S)
    assert broken.status == 413, broken.body[:200]
    unending = stage.node.post("/tasks/batch", b'{"tasks":["%b' % (b'\\"' * (size // 2)), deadline_s=DEADLINE_S)
    assert unending.status == 400, unending.body[:200]


@attack("A1 batch of two tasks of 8 MiB of brackets each", is_long=True)
def long_items(stage: Stage) -> None:
    item = b'{"type":"email","payload":[%b]}' % b",".join([b"[]"] * ((8 << 20) // 3 - 30))
    results = batch(stage, b'{"tasks":[%b,%b]}' % (item, item)).json["results"]
    assert [result["error"]["code"] for result in results] == ["payload_too_large"] * 2


@attack("A1 lines that are empty, 16 MiB of them", is_long=True)
def no_lines(stage: Stage) -> None:
    assert batch(stage, b"\n" * (16 << 20), ndjson=True).json["results"] == []


@attack("A1 submit of 100,000 tags, and of a million unknown fields")
def many_fields(stage: Stage) -> None:
    tags = b",".join(b'"%06d":"x"' % number for number in range(80_000))
    for body in (b'{"type":"a","tags":{%b}}' % tags, b'{"type":"a","backoff":{%b}}' % tags, b"{%b}" % tags):
        assert stage.node.post("/tasks/submit", body, deadline_s=DEADLINE_S).status == 422
    million = b",".join(b'"%07d":1' % number for number in range(1_000_000))
    assert stage.node.post("/tasks/submit", b"{%b}" % million, deadline_s=DEADLINE_S).status == 413


@attack("A1 submit of a payload of 500,000 numbers", is_long=True)
def long_submit(stage: Stage) -> None:
    body = b'{"type":"email","payload":[%b]}' % b",".join([b"1"] * 500_000)
    assert stage.node.post("/tasks/submit", body, deadline_s=DEADLINE_S).status in (201, 422)


@attack("A1 three nodes, a batch of 10,000 empty items to each", nodes=3, is_long=True)
def one_to_each(stage: Stage) -> None:
    leader = stage.node.get("/cluster").json["cluster"]["leader"]
    threads = [
        threading.Thread(target=node.post, args=("/tasks/batch", items(b"{}")), kwargs={"deadline_s": DEADLINE_S})
        for node in stage.nodes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stage.node.get("/cluster").json["cluster"]["leader"] == leader

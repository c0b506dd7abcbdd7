"""A16: long lists, alone and many at once; reads that are no list."""

from __future__ import annotations

import json
import threading

from tests.attacks.harness import Stage, attack

ROWS = 10_000


def fill(stage: Stage) -> None:
    task = {
        "type": "email",
        "payload": {"to": "user@example.com", "text": "x" * 60},
        "delay": 86_400,
        "tags": {"a": "b"},
    }
    body = json.dumps({"tasks": [task] * 5_000}).encode()
    for _ in range(ROWS // 5_000):
        answer = stage.node.post("/tasks/batch", body, deadline_s=120)
        assert answer.json["accepted"] == 5_000, answer.body[:300]


def at_once(stage: Stage, path: str, count: int) -> list[int]:
    """Status of each answer."""
    found: list[int] = []

    def ask() -> None:
        found.append(stage.node.get(path, deadline_s=300).status)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@attack("A16 a list of 10,000, alone, then 16 at once", prepare=fill)
def long_lists(stage: Stage) -> None:
    assert stage.node.get(f"/tasks/list?limit={ROWS}", deadline_s=300).status == 200
    found = at_once(stage, f"/tasks/list?limit={ROWS}", 16)
    assert len(found) == 16
    assert set(found) <= {200, 429}
    assert 200 in found


@attack("A16 64 lists of 1,000 at once, sorted otherwise", prepare=fill, is_long=True)
def many_lists(stage: Stage) -> None:
    found = at_once(stage, "/tasks/list?limit=1000&sort=-created_at", 64)
    assert set(found) <= {200, 429}
    assert 200 in found

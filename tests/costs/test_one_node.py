"""What HTTP costs of a request, and SQL of a batch. The bounds are what was measured and a tenth."""

from __future__ import annotations

import cProfile
import itertools
import pstats
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stores import birth, change, group_writer, record
from tests.unit.tq_node.api.talk import World
from tq_node.store.api import Batch
from tq_node.store.sqlite import open_database

TIMES = 50
BODY = b'{"type":"noop"}'


@pytest.fixture(params=[False, True], ids=["klein", "hot"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(fast_path=request.param)
    yield world
    world.close()


def calls_of(world: World, data: bytes) -> float:
    """Of Python functions of ours, Twisted's and Klein's for one request."""
    client = world.connect()
    client.send(data)
    profile = cProfile.Profile(builtins=False)
    profile.enable()
    for _ in range(TIMES):
        client.send(data)
    profile.disable()
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # public, and not in typeshed
    return float(sum(row[1] for place, row in found.items() if "/tests/" not in place[0]) / TIMES)


@pytest.mark.parametrize(
    ("what", "bounds"),
    [("submit", {False: 190.0, True: 46.0}), ("status", {False: 163.0, True: 35.0})],
)
def test_calls_of_a_request(world: World, what: str, bounds: dict[bool, float]) -> None:
    task_id = world.submit()
    data = (
        b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
        if what == "submit"
        else b"GET /tasks/status?id=%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % task_id.encode()
    )
    found = calls_of(world, data)
    is_hot = world.site.server.settings.fast_path
    print(f"\n{what}, {'hot' if is_hot else 'klein'}: {found:.0f} calls")
    assert found < bounds[is_hot]


@pytest.mark.parametrize(("tasks", "partitions", "statements"), [(1, 1, 6), (100, 64, 6), (1_000, 64, 6)])
def test_sql_statements_of_a_commit(tmp_path: Path, tasks: int, partitions: int, statements: int) -> None:
    """Submitted, and written to the rows; then all of them claimed. Each statement costs a turn of the interpreter's lock."""
    connection = open_database.connect_writer(tmp_path / "store.db")
    try:
        writer = group_writer(connection)
        seen: list[str] = []
        connection.set_trace_callback(seen.append)
        for step in (1, 2):
            del seen[:]
            batch = Batch(
                entries=[record(partition, step) for partition in range(partitions)],
                rows=[
                    birth(f"t{number}", partition=number % partitions)
                    if step == 1
                    else change(f"t{number}", step, partition=number % partitions, body=b"done")
                    for number in range(tasks)
                ],
                applied=dict.fromkeys(range(partitions), step),
            )
            if step == 1:
                batch.epochs = [(partition, 1, 1) for partition in range(partitions)]
            writer.write([batch])
            # What a trigger looks at is told under the text of its statement, for each row.
            found = [text for text, _ in itertools.groupby(seen) if not text.startswith("INSERT INTO epochs")]
            print(f"\n{tasks} tasks in {partitions} partitions, step {step}: {len(found)} statements")
            assert len(found) <= statements, "\n".join(text[:80] for text in found)
    finally:
        connection.close()

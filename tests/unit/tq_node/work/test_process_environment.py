"""What an attempt leaves behind: nothing. What it finds: what the first one found. What it may take: what was said."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
import pytest

from tests.unit.tq_node.work.conftest import Rig, asynchronous, gone, until
from tq_node import limits
from tq_node.facade import AttemptFailed, Completed
from tq_node.work.process_environment import Bounds, ProcessEnvironment, environment_for


async def value_of(rig: Rig, task_type: str, payload: object = None) -> Any:
    _, outcome = await rig.run(task_type, payload)
    assert isinstance(outcome, Completed), outcome
    return msgspec.json.decode(outcome.result)


@pytest.mark.parametrize("way", ["return", "raise", "hang", "die"])
@asynchronous
async def test_programs_in_sessions_of_their_own_end_with_the_attempt(rig: Rig, way: str) -> None:
    claim, outcome = await rig.run("own_sessions", way, timeout_ms=5_000 if way == "hang" else None)
    pids = [int(pid) for line in rig.queue.lines_of(claim) for pid in line.split()]
    assert len(pids) == 2
    if way in ("return", "raise"):
        assert [gone(pid) for pid in pids] == [True, True], "before the attempt has"
        assert isinstance(outcome, Completed) is (way == "return")
    else:
        assert isinstance(outcome, AttemptFailed)
        assert outcome.error.type == ("timeout" if way == "hang" else "worker_died")
        await until(lambda: all(gone(pid) for pid in pids), "all are gone")


@asynchronous
async def test_many_are_killed_at_once(rigs: Any) -> None:
    rig = rigs(concurrency=3)
    claims = [rig.queue.put("own_sessions", "hang") for _ in range(3)]
    await until(lambda: all(rig.queue.lines_of(claim) for claim in claims), "all have said what they started")
    for claim in claims:
        rig.worker._attempts[claim.task_id, claim.token].release()
    pids = [int(pid) for claim in claims for line in rig.queue.lines_of(claim) for pid in line.split()]
    assert len(pids) == 6
    await until(lambda: all(gone(pid) for pid in pids), "all are gone")


@pytest.mark.parametrize(
    "what",
    ["directory", "umask", "environment", "path", "other path", "recursion", "signals", "stream", "closed", "limit"],
)
@asynchronous
async def test_the_next_task_finds_what_the_first_one_found(rigs: Any, what: str) -> None:
    rig = rigs(concurrency=1)
    before = await value_of(rig, "around")
    spoilt = await value_of(rig, "spoil", what)
    after = await value_of(rig, "around")
    is_replaced = what in ("closed", "limit")
    assert (spoilt == after.pop("pid")) is not is_replaced, "what can be put back costs no process"
    before.pop("pid")
    for found in (before, after):
        mark = found["environment"].pop("TASKQUEUE_WORKER")
        assert mark.startswith(f"{os.getpid()}:")
    assert after == before
    assert after["core"] == 0


@pytest.mark.parametrize("how", ["heap", "recursion"])
@asynchronous
async def test_a_handler_that_wants_more_memory_than_it_may_have_fails(rigs: Any, how: str) -> None:
    rig = rigs(
        concurrency=1, environment=ProcessEnvironment(bounds=Bounds(memory_bytes=limits.WORKER_MEMORY_BYTES_MIN))
    )
    _, outcome = await rig.run("hungry", how)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "out_of_memory"
    assert f"--worker-memory allows, {limits.WORKER_MEMORY_BYTES_MIN} bytes" in outcome.error.message
    assert not outcome.final
    assert await value_of(rig, "hungry", "little") == 8 << 20


@asynchronous
async def test_modules_that_need_more_than_the_bound_are_named(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tq_node.work.start_failures._BACKOFF_S", 0.05)
    rig = rigs(concurrency=1, environment=ProcessEnvironment(bounds=Bounds(memory_bytes=1 << 20)))
    await until(lambda: bool(rig.worker.notes), "it has given up")
    assert "--worker-memory" in rig.worker.notes[0].detail


@asynchronous
async def test_the_umask_is_the_one_that_was_given(rigs: Any) -> None:
    rig = rigs(concurrency=1, environment=ProcessEnvironment(umask=0o027))
    assert (await value_of(rig, "around"))["umask"] == 0o027


@asynchronous
async def test_the_environment_is_the_one_that_was_given(rigs: Any) -> None:
    rig = rigs(concurrency=1, environment=ProcessEnvironment(variables={"PATH": "/bin", "SHOP": "1"}))
    found = (await value_of(rig, "around"))["environment"]
    found.pop("TASKQUEUE_WORKER")
    of_python = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    of_python |= {name: found[name] for name in ("LC_CTYPE",) if name in found}
    assert found == {"PATH": "/bin", "SHOP": "1"} | of_python


def test_what_is_the_nodes_own_is_given_to_nobody() -> None:
    own = {"TQ_SECRET_FILE": "x", "TQ_TOKEN": "x", "NOTIFY_SOCKET": "x", "LISTEN_FDS": "3", "WATCHDOG_USEC": "1"}
    given = {"PATH": "/bin", "API_KEY": "k", "LC_ALL": "C", "AWS_REGION": "r", "PYTHONHASHSEED": "0"}
    assert environment_for(own | given, ()) == given
    kept = {name: value for name, value in given.items() if name != "API_KEY"}
    assert environment_for(own | given, ("AWS_*",)) == kept
    assert environment_for(own | given, ("*",)) == given


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@asynchronous
async def test_children_that_the_module_has_started_live_on(rigs: Any) -> None:
    rig = rigs(concurrency=1)
    rig.worker.pool._spawner.start = msgspec.structs.replace(
        rig.worker.pool._spawner.start, modules=("tests.unit.tq_node.work.servant_handlers",)
    )
    for process in list(rig.worker.pool._all):
        process.kill()
    first = await value_of(rig, "echo")
    assert await value_of(rig, "echo") == first
    assert not gone(first)
    await rig.worker.stopService()
    await until(lambda: gone(first), "it goes with its process")

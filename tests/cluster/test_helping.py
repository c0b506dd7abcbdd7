"""Work across the cluster: nodes with free slots take tasks of one that has too many, and end them at its partitions' primary."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster, whole_cluster
from tests.cluster.replicated import (
    HANDLERS,
    HARM,
    NAMES,
    MakeCluster,
    every_task,
    ids_in,
    led_by,
    seed_of,
    started,
    wait_ended,
    wait_settled,
)
from tests.support.harness import until

pytestmark = pytest.mark.cluster

SLOTS = 64
LOADS = (
    (0.2, 480),
    *(pytest.param(runs_s, count, marks=pytest.mark.long) for runs_s, count in ((0.2, 960), (0.2, 1_920), (0.5, 960))),
)
"""Seconds that a task sleeps in the reactor, so that slots are the bound and not the machine; and how many there are."""
LEASE_S = 15.0
PATIENT_S = 90.0


def skewed(cluster: Cluster, name: str, prefix: str, count: int) -> list[str]:
    """Ids of tasks in the partitions that the node leads, and in no others."""
    seed = seed_of(cluster)
    sources = [ids_in(seed, partition, prefix) for partition in led_by(cluster, name)]
    assert sources, f"{name} leads something"
    return [next(source) for source in itertools.islice(itertools.cycle(sources), count)]


def submit(cluster: Cluster, name: str, ids: Iterable[str], seconds: float, **fields: Any) -> None:
    tasks = [{"type": "slow-async", "payload": seconds, "id": task_id, **fields} for task_id in ids]
    answer = cluster[name].post("/tasks/batch", {"tasks": tasks}, deadline_s=60)
    assert answer.json["accepted"] == len(tasks), answer


def at(shown: str) -> float:
    return dt.datetime.fromisoformat(shown).timestamp()


def span_s(tasks: dict[str, dict[str, Any]]) -> float:
    """From the first submit to the last end."""
    return max(at(task["completed_at"]) for task in tasks.values()) - min(
        at(task["created_at"]) for task in tasks.values()
    )


def by_worker(tasks: dict[str, dict[str, Any]]) -> Counter[str]:
    return Counter(task["worker"] for task in tasks.values())


def assert_each_ran_once(tasks: dict[str, dict[str, Any]]) -> None:
    for task in tasks.values():
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["completed"], task


def wait_completed(
    cluster: Cluster, via: str, ids: Iterable[str], deadline_s: float = PATIENT_S
) -> dict[str, dict[str, Any]]:
    """All of them, as a node lists them. While a partition changes hands its tasks are not listed."""
    wanted = set(ids)

    def found() -> dict[str, dict[str, Any]]:
        page = cluster[via].get("/tasks/list?limit=2000&scope=cluster&status=completed", deadline_s=60).json
        tasks = {task["id"]: task for task in page["tasks"]}
        return tasks if wanted <= tasks.keys() else {}

    return until(found, deadline_s=deadline_s, what=f"{len(wanted)} tasks are completed")


def wait_running(
    cluster: Cluster, via: str, ids: Iterable[str], enough: Callable[[Counter[str]], bool]
) -> Counter[str]:
    """Until the tasks are under way on such nodes."""
    wanted = set(ids)

    def found() -> Counter[str]:
        tasks = every_task(cluster, via, "scope=cluster&status=processing")
        counts = Counter(task["worker"] for task in tasks.values() if task["id"] in wanted)
        return counts if enough(counts) else Counter()

    return until(found, what="tasks run where they should")


@pytest.mark.parametrize(("runs_s", "count"), LOADS)
def test_three_nodes_share_a_load_that_is_all_one_nodes(make_cluster: MakeCluster, runs_s: float, count: int) -> None:
    """Every task is in a partition that node-1 leads."""
    cluster = started(make_cluster, more=("--concurrency", str(SLOTS)))
    ids = skewed(cluster, "node-1", "shared", count)
    submit(cluster, "node-1", ids, runs_s)
    wait_ended(cluster, deadline_s=PATIENT_S)
    tasks = every_task(cluster)
    three_s, ran = span_s(tasks), by_worker(tasks)
    print(
        f"\n{count} tasks of {runs_s:g} s, {SLOTS} slots a node: {three_s:.2f} s on three nodes "
        f"(slots of one alone: {count * runs_s / SLOTS:.2f} s); by node {dict(sorted(ran.items()))}"
    )
    assert_each_ran_once(tasks)
    assert set(ran) == set(NAMES)
    assert min(ran.values()) > count / 10, f"each takes a good part of it: {ran}"
    cluster.stop()
    cluster.assert_logs_are_clean()


@pytest.mark.long
def test_a_helper_is_killed(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Its attempts are run again by the rule: once their lease is over, and not before."""
    ledger = tmp_path / "ledger"
    cluster = started(make_cluster, more=("--concurrency", "8"), environment={"TEST_LEDGER": str(ledger)})
    ids = skewed(cluster, "node-1", "held", 24)
    submit(cluster, "node-1", ids, 15.0)
    wait_running(cluster, "node-1", ids, lambda counts: set(counts) == set(NAMES))
    victim = next(name for name in ("node-2", "node-3") if name != cluster.leader())
    running = every_task(cluster, "node-1", "scope=cluster&status=processing").values()
    held = [task["id"] for task in running if task["worker"] == victim]
    began_s = time.monotonic()
    cluster[victim].kill9()
    tasks = wait_completed(cluster, "node-1", ids, LEASE_S + PATIENT_S)
    print(f"\n{len(held)} attempts of {victim} had ended elsewhere {time.monotonic() - began_s:.1f} s after its end")
    assert held
    for task_id, task in tasks.items():
        outcomes = [attempt["outcome"] for attempt in task["attempts"]]
        assert task["status"] == "completed"
        if task_id in held:
            assert outcomes == ["lost", "completed"], task
            assert task["attempts"][0]["node"] == victim
            lost_s = at(task["attempts"][0]["ended_at"]) - at(task["attempts"][0]["started_at"])
            assert lost_s > LEASE_S - 1.5, "not before the lease is over"
        else:
            assert outcomes == ["completed"], task
    cluster.assert_logs_are_clean(HARM)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_helped_primary_is_killed(make_cluster: MakeCluster, tmp_path: Path, all_of_them: bool) -> None:
    """What helpers run for it goes on, is renewed at the new primary, and ends there with the token that the dead one gave.

    In the long run it is waited for what the dead node itself ran, too: begun again once its lease is over.
    """
    ledger = tmp_path / "ledger"
    cluster = started(make_cluster, more=("--concurrency", "8"), environment={"TEST_LEDGER": str(ledger)})
    victim = next(name for name in NAMES if name != cluster.leader())
    ids = skewed(cluster, victim, "helped", 24)
    submit(cluster, victim, ids, 20.0)
    wait_running(cluster, victim, ids, lambda counts: set(counts) == set(NAMES))
    others = [name for name in NAMES if name != victim]
    before = every_task(cluster, victim)
    helped = {task_id for task_id, task in before.items() if task.get("worker") in others}
    assert len(helped) > 4, by_worker(before)
    # On the ledger they have begun, so that what the dead node had still to say is heard.
    until(lambda: all(task_id in ledger.read_text() for task_id in helped), what="the helpers run them")
    cluster[victim].kill9()
    tasks = wait_completed(cluster, others[0], ids if all_of_them else helped, LEASE_S + PATIENT_S)
    for task_id in helped:
        task = tasks[task_id]
        assert task["node"] in others, "another is primary"
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["completed"], task
    starts = Counter(line.split()[0] for line in ledger.read_text().splitlines() if line.split()[3] == "began")
    assert all(starts[task_id] == 1 for task_id in helped)
    cluster.assert_logs_are_clean(HARM)


@pytest.mark.long
def test_a_task_that_runs_on_a_drained_node_ends_there(make_cluster: MakeCluster) -> None:
    """Its partition moves away; its end is accepted by the new primary. The drained node begins nothing more, nor for others."""
    cluster = started(make_cluster, more=("--concurrency", "4"))
    drained = next(name for name in NAMES if name != cluster.leader())
    others = [name for name in NAMES if name != drained]
    running = skewed(cluster, drained, "running", 4)
    submit(cluster, drained, running, 45.0)
    wait_running(cluster, drained, running, lambda counts: counts[drained] == 4)
    pid = cluster[drained].pid
    assert cluster[others[0]].post(f"/cluster/drain?node={drained}").status == 202
    until(
        lambda: not led_by(cluster, drained, others[0]) and cluster.leader() != drained,
        deadline_s=PATIENT_S,
        what=f"{drained} leads nothing",
    )
    assert all(cluster[others[0]].status(task_id)["status"] == "processing" for task_id in running), (
        "and still runs them"
    )
    more = skewed(cluster, others[0], "more", 40)
    submit(cluster, others[0], more, 1.0)
    tasks = wait_completed(cluster, others[0], running + more)
    assert_each_ran_once(tasks)
    for task_id in running:
        assert (tasks[task_id]["worker"], tasks[task_id]["result"]) == (drained, pid)
        assert tasks[task_id]["node"] in others
    assert by_worker({task_id: tasks[task_id] for task_id in more}).keys() == set(others), (
        "the two others share the rest"
    )


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two slots a node, and a ledger; whole from the first to the last test that takes it."""
    directory = tmp_path_factory.mktemp("helping")
    environment = {"TEST_LEDGER": str(directory / "ledger")}
    options = (*HANDLERS, "--concurrency", "2")
    with whole_cluster(directory, NAMES, options=options, environment=environment) as cluster:
        wait_settled(cluster)
        yield cluster


def test_a_queue_that_is_paused_starts_nowhere(lasting: Cluster) -> None:
    """The first of the two: until the other queue is worked off nothing may be cancelled there."""
    cluster = lasting
    assert cluster["node-2"].post("/tasks/pause?queue=still").status == 200
    still = skewed(cluster, "node-1", "still", 30)
    submit(cluster, "node-1", still, 0.1, queue="still")
    going = skewed(cluster, "node-1", "going", 60)
    submit(cluster, "node-1", going, 0.5)
    until(
        lambda: all(
            task["status"] == "completed" for task in every_task(cluster, query="scope=cluster&queue=default").values()
        ),
        deadline_s=PATIENT_S,
        what="the other queue is worked off",
    )
    tasks = every_task(cluster)
    assert {tasks[task_id]["status"] for task_id in still} == {"pending"}
    assert set(by_worker({task_id: tasks[task_id] for task_id in going})) == set(NAMES)
    assert cluster["node-2"].post("/tasks/resume?queue=still").status == 200
    wait_ended(cluster, deadline_s=PATIENT_S)


def test_a_cancel_reaches_the_node_that_helps(lasting: Cluster) -> None:
    cluster, ledger = lasting, lasting.nodes.directory / "ledger"
    ids = skewed(cluster, "node-1", "cancelled", 6)
    submit(cluster, "node-1", ids, 60.0)
    wait_running(cluster, "node-1", ids, lambda counts: counts.total() == 6 and set(counts) == set(NAMES))
    for task_id in ids:
        assert cluster["node-3"].post(f"/tasks/cancel?id={task_id}").status == 200
    # The slots are free again, on all of them: the next ones run at once, and not after a minute.
    fresh = skewed(cluster, "node-1", "fresh", 6)
    submit(cluster, "node-1", fresh, 0.5)
    wait_ended(cluster, deadline_s=PATIENT_S / 2)
    tasks = every_task(cluster)
    assert {tasks[task_id]["status"] for task_id in ids} == {"cancelled"}
    assert {tasks[task_id]["status"] for task_id in fresh} == {"completed"}
    assert "ended" not in [line.split()[3] for line in ledger.read_text().splitlines() if line.startswith("cancelled")]


def test_a_node_takes_only_what_it_has_handlers_for(make_cluster: MakeCluster) -> None:
    """node-2 and node-3 have no handler for ``slow-async``: they leave it alone, and take the rest from behind it."""
    cluster = make_cluster(
        options=("--concurrency", "2"),
        own_options=lambda name: HANDLERS if name == "node-1" else ("--handlers", "tests.support.handlers"),
    )
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_settled(cluster)
    ids = skewed(cluster, "node-1", "own", 12)
    tasks = [{"type": "slow-async", "payload": 1.0, "id": task_id, "priority": 9} for task_id in ids]
    work = skewed(cluster, "node-1", "any", 40)
    tasks += [{"type": "work-async", "payload": 0.2, "id": task_id} for task_id in work]
    assert cluster["node-1"].post("/tasks/batch", {"tasks": tasks}).json["accepted"] == len(tasks)
    wait_ended(cluster, deadline_s=PATIENT_S)
    shown = every_task(cluster)
    assert_each_ran_once(shown)
    assert set(by_worker({task_id: shown[task_id] for task_id in ids})) == {"node-1"}
    assert set(by_worker({task_id: shown[task_id] for task_id in work})) & {"node-2", "node-3"}

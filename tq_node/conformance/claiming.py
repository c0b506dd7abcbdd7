"""Cases of ``POST /work/claim``: what is given, to whom, in which order, and how long it waits."""

from __future__ import annotations

import time
from collections import Counter

from tq_node.conformance.cases import case, equal, must
from tq_node.conformance.probe import SOON_S, Probe, Unanswered, Waiting


@case
def nothing_to_claim(probe: Probe) -> None:
    """Where there is nothing, a claim that does not wait is answered empty."""
    answer = probe.ask()
    equal(answer["claims"], [], "claims")
    equal(answer["state"], "run", "state")
    must(isinstance(answer["waited"], int | float) and answer["waited"] >= 0, "waited is a number of seconds")


@case
def a_claim_says_all_of_its_task(probe: Probe) -> None:
    """A claim names task, type, queue, payload, attempts, token, lease and time of birth."""
    task = probe.submit({"to": "ann"}, max_attempts=4, tags={"a": "b"})
    (claim,) = probe.claim(lease=20)
    wanted = {"task_id": task, "type": probe.type, "queue": probe.queue, "payload": {"to": "ann"}, "attempt": 1}
    wanted |= {"max_attempts": 4, "lease": 20, "tags": {"a": "b"}}
    equal({name: claim.get(name) for name in wanted}, wanted, "the claim")
    must(isinstance(claim["token"], str) and claim["token"], "token is a text")
    must(str(claim["created_at"]).endswith("Z"), "created_at is a time in UTC")


@case
def payloads_come_as_they_were_sent(probe: Probe) -> None:
    """Any JSON value is a payload, and comes back as it was sent."""
    values = [None, True, 0, -7, 1.5, "", "grüße 🚀", [], {}, [1, [2, {"a": None}]], {"é": "\\u0000 \\n"}]
    sent = {probe.submit(value): value for value in values}
    found = {claim["task_id"]: claim["payload"] for claim in probe.claim(len(values))}
    equal(found, sent, "payloads by task")


@case
def a_large_payload_comes_whole(probe: Probe) -> None:
    """A payload of 900 KiB comes whole."""
    payload = "x" * 900 * 1024
    probe.submit(payload)
    must(probe.claim()[0]["payload"] == payload, "the payload is as it was sent")


@case
def timeout_and_deadline(probe: Probe) -> None:
    """A task with a timeout says it, and the instant at which the attempt is over."""
    probe.submit(timeout=90)
    (claim,) = probe.claim()
    equal(claim["timeout"], 90, "timeout")
    must(str(claim["deadline"]).endswith("Z"), "deadline is a time in UTC")


@case
def without_a_timeout_none_is_said(probe: Probe) -> None:
    """A task without a timeout has neither timeout nor deadline."""
    probe.submit()
    (claim,) = probe.claim()
    equal((claim.get("timeout"), claim.get("deadline")), (None, None), "timeout and deadline")


@case
def only_types_that_were_asked_for(probe: Probe) -> None:
    """A worker that names types is given no others."""
    other = probe.submit(type=f"{probe.type}-other")
    mine = probe.submit()
    equal([one["task_id"] for one in probe.claim()], [mine], "tasks that were given")
    equal(probe.ask()["claims"], [], "claims once its own are gone")
    equal(probe.claim(types=[f"{probe.type}-other"])[0]["task_id"], other, "the other type's task")


@case
def several_types(probe: Probe) -> None:
    """A worker may name several types."""
    names = [f"{probe.type}-{letter}" for letter in "abc"]
    tasks = {probe.submit(type=name) for name in names}
    equal({one["task_id"] for one in probe.claim(3, types=names)}, tasks, "tasks that were given")


@case
def any_type(probe: Probe) -> None:
    """A worker that names no types takes all of its queues."""
    task = probe.submit(type=f"{probe.type}-unheard-of")
    equal(probe.claim(types=None, queues=[probe.queue])[0]["task_id"], task, "the task that was given")


@case
def only_queues_that_were_asked_for(probe: Probe) -> None:
    """A worker that names queues is given tasks of no others."""
    probe.submit(queue=f"{probe.queue}-other")
    mine = probe.submit()
    equal([one["task_id"] for one in probe.claim(queues=[probe.queue])], [mine], "tasks that were given")
    equal(probe.ask(queues=[probe.queue])["claims"], [], "claims once its own are gone")


@case
def queues_in_their_order(probe: Probe) -> None:
    """A list of queues is served in its order."""
    low, high = f"{probe.queue}-low", f"{probe.queue}-high"
    for queue in (low, high):
        for _ in range(6):
            probe.submit(queue=queue)
    given = [probe.claim(queues=[high, low])[0]["queue"] for _ in range(12)]
    equal(given, [high] * 6 + [low] * 6, "queues in the order in which they were served")


@case
def queues_by_weight(probe: Probe) -> None:
    """Queues with weights are served in turn, each by its weight."""
    light, heavy = f"{probe.queue}-light", f"{probe.queue}-heavy"
    for queue in (light, heavy):
        for _ in range(12):
            probe.submit(queue=queue)
    counted = Counter(one["queue"] for one in probe.claim(12, queues={heavy: 3, light: 1}))
    must(
        counted[heavy] > counted[light] > 0, f"of 12 more than half are of the heavier queue, not all: {dict(counted)}"
    )


@case
def no_more_than_the_limit(probe: Probe) -> None:
    """A claim brings no more tasks than it asked for."""
    for _ in range(5):
        probe.submit()
    first = len(probe.ask(limit=3, wait=5)["claims"])
    must(1 <= first <= 3, f"one to three of five: {first}")
    equal(len(probe.claim(5 - first)), 5 - first, "the rest")


@case
def each_task_once(probe: Probe) -> None:
    """No task is given to two claims."""
    tasks = {probe.submit() for _ in range(6)}
    given = [probe.claim(worker=f"{probe.worker}-{number % 2}", node=number)[0]["task_id"] for number in range(6)]
    equal(sorted(given), sorted(tasks), "tasks that were given")
    equal(probe.ask()["claims"], [], "claims once all are given")


@case
def high_priority_first(probe: Probe) -> None:
    """Of tasks that wait, one of a higher priority comes first."""
    tasks = {probe.submit(priority=priority): priority for priority in (1, 9, 5)}
    given = [tasks[probe.claim()[0]["task_id"]] for _ in range(3)]
    equal(given, [9, 5, 1], "priorities in the order in which they came")


@case
def a_later_task_is_not_given_early(probe: Probe) -> None:
    """A task with a delay is not given before it is due; a claim that waits is, then."""
    task, began_s = probe.submit(delay=3), time.monotonic()
    equal(probe.ask()["claims"], [], "claims before it is due")
    equal(probe.claim(wait=10)[0]["task_id"], task, "the task that was given")
    must(time.monotonic() - began_s >= 2.5, "not before it is due")


@case
def a_wait_ends_empty(probe: Probe) -> None:
    """A claim waits as long as it says, and is answered empty, with how long it was held."""
    began_s = time.monotonic()
    answer = probe.ask(wait=1.5)
    took_s = time.monotonic() - began_s
    equal(answer["claims"], [], "claims")
    must(1.2 <= took_s < SOON_S, f"it waits for 1.5 s: {took_s:.1f} s")
    must(0 <= answer["waited"] <= took_s + 0.1, f"waited is no longer than it took: {answer['waited']}")


@case
def a_wait_ends_with_work(probe: Probe) -> None:
    """A claim that waits is answered as soon as there is a task."""
    waiting = Waiting(probe)
    time.sleep(0.5)
    task = probe.submit()
    answer = waiting.answer()
    equal([one["task_id"] for one in answer["claims"]], [task], "tasks that were given")
    must(waiting.took_s < SOON_S - 2, f"it does not wait to the end: {waiting.took_s:.1f} s")
    must(0 <= answer["waited"] <= waiting.took_s + 0.1, f"waited is no longer than it took: {answer['waited']}")


@case
def a_wait_at_another_address(probe: Probe) -> None:
    """Work that comes at one address reaches a worker that waits at another."""
    waiting = Waiting(probe, node=1)
    time.sleep(0.5)
    task = probe.submit()
    equal([one["task_id"] for one in waiting.answer()["claims"]], [task], "tasks that were given")


@case
def two_that_wait(probe: Probe) -> None:
    """Of two workers that wait, each gets one of two tasks."""
    waiting = [Waiting(probe, worker=f"{probe.worker}-{number}", limit=1) for number in (1, 2)]
    time.sleep(0.5)
    tasks = [probe.submit(), probe.submit()]
    given = [one["task_id"] for each in waiting for one in each.answer()["claims"]]
    equal(sorted(given), sorted(tasks), "tasks that were given")


@case
def a_cancel_ends_the_wait(probe: Probe) -> None:
    """A claim that waits is answered at once when an attempt of its worker is cancelled."""
    task = probe.submit()
    claims = probe.claim()
    waiting = Waiting(probe, wait=25)
    time.sleep(0.7)
    probe.cancel(task)
    equal(waiting.answer()["claims"], [], "claims")
    must(waiting.took_s < 20, f"it does not wait to the end: {waiting.took_s:.1f} s")
    equal(probe.extend(claims), [{"cancelled": True}], "the result of extending it")


@case
def the_same_claim_id_again(probe: Probe) -> None:
    """The same claim id again brings the same claims, with the same tokens."""
    for _ in range(3):
        probe.submit()
    name = probe.fresh_id()
    first = probe.ask(claim_id=name, limit=2, wait=5)["claims"]
    must(first, "the first time brings some")
    again = probe.ask(claim_id=name, limit=2)["claims"]
    equal(_attempts(again), _attempts(first), "attempts of the second time")


@case
def the_same_claim_id_at_another_address(probe: Probe) -> None:
    """So it is at another address."""
    probe.submit()
    name = probe.fresh_id()
    first = probe.ask(claim_id=name, wait=5)["claims"]
    must(first, "the first time brings some")
    for node in (1, 2):
        again = probe.ask(claim_id=name, node=node)["claims"]
        equal(_attempts(again), _attempts(first), f"attempts at address {node + 1}")


@case
def another_claim_id(probe: Probe) -> None:
    """Another claim id brings other tasks."""
    tasks = {probe.submit(), probe.submit()}
    given = [probe.claim(claim_id=probe.fresh_id(), limit=1)[0]["task_id"] for _ in range(2)]
    equal(set(given), tasks, "tasks that were given")


@case
def the_claim_id_of_another_worker(probe: Probe) -> None:
    """The claim id of another worker brings none of its claims."""
    probe.submit()
    probe.claim(claim_id="shared-by-chance")
    found = probe.ask(claim_id="shared-by-chance", worker=f"{probe.worker}-2")["claims"]
    equal(found, [], "claims of the other worker")


@case
def a_claim_id_whose_attempts_have_ended(probe: Probe) -> None:
    """A claim id brings no attempt that has ended."""
    probe.submit()
    name = probe.fresh_id()
    claims = probe.claim(claim_id=name)
    equal(probe.finish(claims), [{"success": True}], "results")
    equal(probe.ask(claim_id=name)["claims"], [], "claims")


@case
def who_runs_it_is_shown(probe: Probe) -> None:
    """A claimed task is shown as processing, with its worker."""
    task = probe.submit()
    probe.claim()
    shown = probe.status(task)
    equal((shown["status"], shown.get("worker")), ("processing", probe.worker), "status and worker")


@case
def workers_are_listed(probe: Probe) -> None:
    """A worker that has claimed is listed, with what it says of itself and how much it runs."""
    probe.submit()
    probe.claim(slots=7, version="v-9", queues=[probe.queue])

    def of_it() -> list[dict[str, object]]:
        answer = probe.server.call("GET", "/workers", None, token=probe.server.token)
        if answer.status != 200:
            raise Unanswered(f"GET /workers is answered {answer.status}")
        return [one for one in answer.json["workers"] if one["worker"] == probe.worker]

    probe.until(of_it, "it is listed")
    (shown,) = of_it()
    wanted = {"slots": 7, "version": "v-9", "types": [probe.type], "queues": [probe.queue], "state": "run", "busy": 1}
    equal({name: shown[name] for name in wanted}, wanted, "the worker")


@case
def a_quiet_worker_gets_nothing(probe: Probe) -> None:
    """A worker that operators quiet is told so, and given nothing until they resume it."""
    probe.submit()
    probe.order("quiet")
    for node in (0, 1):
        answer = probe.ask(node=node, wait=0.5)
        equal((answer["state"], answer["claims"]), ("quiet", []), "state and claims")
    probe.order("resume")
    equal(len(probe.claim()), 1, "claims once it is resumed")


@case
def a_stopped_worker_is_told_at_once(probe: Probe) -> None:
    """A worker that waits is answered at once, with the state stop, when operators stop it."""
    waiting = Waiting(probe, wait=25)
    time.sleep(0.7)
    probe.order("stop")
    equal(waiting.answer()["state"], "stop", "state")
    must(waiting.took_s < 20, f"it does not wait to the end: {waiting.took_s:.1f} s")
    equal(probe.ask(node=1)["state"], "stop", "state at another address")
    probe.order("resume")


@case
def a_paused_queue_gives_nothing(probe: Probe) -> None:
    """Nothing is given of a queue that is paused."""
    probe.done(f"/tasks/pause?queue={probe.queue}")
    try:
        task = probe.submit()
        equal(probe.ask(wait=1)["claims"], [], "claims while it is paused")
    finally:
        probe.done(f"/tasks/resume?queue={probe.queue}")
    equal(probe.claim()[0]["task_id"], task, "the task that was given then")


def _attempts(claims: list[dict[str, object]]) -> list[tuple[str, str]]:
    return sorted((str(one["task_id"]), str(one["token"])) for one in claims)

"""``Queue`` among threads, forks and the ends of processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.harness import PROJECT, NodeProcess, clean_environment, free_port, until
from tq_node.client import Closed, OutcomeUnknown, Queue, TaskQueueError, Unreachable

pytestmark = pytest.mark.cluster
WAIT_S = 60.0
NAME = "taskqueue-client"


def client_threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def test_many_threads_one_queue(node: NodeProcess) -> None:
    with Queue(f"localhost:{node.http_port}") as queue, ThreadPoolExecutor(16) as pool:
        tasks = list(pool.map(lambda number: queue.submit("echo", number), range(400)))
        assert len({task.id for task in tasks}) == 400
        results = list(pool.map(lambda task: task.result(WAIT_S), tasks))
        assert results == list(range(400))
    assert client_threads() == 0


def test_nothing_begins_before_the_first_call() -> None:
    queue = Queue(f"localhost:{free_port()}", deadline=1.5)
    assert client_threads() == 0
    with pytest.raises(Unreachable):
        queue.submit("echo")
    with pytest.raises(Unreachable):
        queue.stats()
    queue.close()
    queue.close()
    for call in (lambda: queue.submit("echo"), queue.stats, lambda: list(queue.list())):
        with pytest.raises(Closed):
            call()


def test_a_queue_that_is_forgotten_ends_its_thread(node: NodeProcess) -> None:
    queue = Queue(f"localhost:{node.http_port}")
    task = queue.submit("echo")
    assert client_threads() == 1
    del queue, task
    gc.collect()
    until(lambda: client_threads() == 0, what="the thread has ended", deadline_s=30)


def test_close_reaches_every_thread_that_is_in_a_call(node: NodeProcess) -> None:
    queue = Queue(f"localhost:{node.http_port}")
    later = queue.submit("echo", delay=3600)
    ends: list[object] = []
    submitted: list[str] = []

    def waiter() -> None:
        try:
            later.wait()
        except TaskQueueError as why:
            ends.append(why)

    def submitter() -> None:
        try:
            while True:
                submitted.append(queue.submit("echo", delay=3600).id)
        except TaskQueueError as why:
            ends.append(why)

    threads = [threading.Thread(target=target) for target in (waiter, waiter, *[submitter] * 8)]
    for thread in threads:
        thread.start()
    until(lambda: len(submitted) > 50, deadline_s=WAIT_S)
    queue.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert {type(end) for end in ends} <= {Closed, OutcomeUnknown}, "unknown where a node took more than five seconds"
    with Queue(f"localhost:{node.http_port}") as other:
        there = {task.id for task in other.list(status="scheduled")}
    assert set(submitted) <= there


def script(node: NodeProcess, text: str) -> str:
    """What it printed; warnings are errors, and it must say nothing on the other channel."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", f"ADDRESS = 'localhost:{node.http_port}'\n{text}"],
        cwd=PROJECT, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_process_ends_though_nobody_closed(node: NodeProcess) -> None:
    begun = time.monotonic()
    said = script(node, "from tq_node.client import Queue\nq = Queue(ADDRESS)\nprint(q.submit('echo', 5).result(60))")
    assert said == "5\n"
    assert time.monotonic() - begun < 60


def test_a_forked_child_begins_afresh_and_the_parent_goes_on(node: NodeProcess) -> None:
    said = script(
        node,
        """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork where there are threads
from tq_node.client import Queue
queue = Queue(ADDRESS)
ids = [queue.submit("echo").id]
children = []
for _ in range(3):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        task = queue.submit("echo", "child")
        os.write(writing, f"{task.id} {task.result(60)}".encode())
        queue.close()
        os._exit(0)
    children.append((pid, reading))
    ids.append(queue.submit("echo").id)
for pid, reading in children:
    assert os.waitpid(pid, 0)[1] == 0
    name, result = os.read(reading, 1000).decode().split()
    assert result == "child"
    ids.append(name)
print(queue.submit("echo", "parent").result(60), len(set(ids)))
queue.close()
""",
    )
    assert said == "parent 7\n"


def test_ctrl_c_gets_out_of_a_call(node: NodeProcess) -> None:
    said = script(
        node,
        """
import os, signal, threading
from tq_node.client import Queue
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so does its child
with Queue(ADDRESS) as queue:
    task = queue.submit("slow", 300)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        task.wait()
    except KeyboardInterrupt:
        print("out", task.cancel())
""",
    )
    assert said == "out cancelled\n"

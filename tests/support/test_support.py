"""The net below every test: what nobody expected fails it. And the harness's own judgements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PROJECT, NodeProcess, TimedOut, clean_environment, free_port, until

pytest_plugins = ["pytester"]

INNER = """
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger


def test_deferred_error_that_nobody_handles(): fail(ValueError("lost"))
def test_deferred_error_in_a_cycle():
    deferred = Deferred()
    deferred.itself = deferred
    deferred.errback(ValueError("lost"))
def test_logged_failure():
    try:
        raise ValueError("logged")
    except ValueError:
        Logger().failure("it broke")
def test_critical_event(): Logger().critical("it broke")
def test_call_left_on_the_reactor(): reactor.callLater(60, print)
async def test_failing_coroutine():
    await deferLater(reactor, 0.001)
    assert False


def test_fine_expected(logged_errors):
    fail(ValueError("lost"))
    assert len(logged_errors.flush(ValueError)) == 1
def test_fine_warning(): Logger().warn("not an error")
def test_fine_call_that_is_due(): reactor.callLater(0.01, print)
async def test_fine_coroutine(): await deferLater(reactor, 0.001)
"""


def test_what_nobody_expected_fails_a_test(pytester: pytest.Pytester) -> None:
    shutil.copy(PROJECT / "tests/conftest.py", pytester.path / "conftest.py")
    (pytester.path / "pytest.ini").write_text(f"[pytest]\npythonpath = {PROJECT}\naddopts = --import-mode=importlib\n")
    pytester.makepyfile(test_inner=INNER)
    result = pytester.runpytest_subprocess("-rA", "-p", "no:cacheprovider")
    verdicts = result.parseoutcomes()
    assert verdicts == {"passed": 9, "failed": 1, "errors": 5}, result.stdout.str()
    shown = result.stdout.str()
    for name in ("deferred_error_that", "deferred_error_in", "logged_failure", "critical_event", "call_left"):
        assert f"ERROR test_inner.py::test_{name}" in shown
    assert "ERROR test_inner.py::test_fine" not in shown


def test_until_gives_up_and_says_what_it_waited_for() -> None:
    with pytest.raises(TimedOut, match="the moon"):
        until(lambda: False, deadline_s=0.05, what="the moon")
    assert until(lambda: 3) == 3
    with pytest.raises(TimedOut):
        until(Path("/not/there").read_text, deadline_s=0.05)


def test_the_environment_of_a_node_has_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_HTTP", "1")
    monkeypatch.setenv("NODE_ID", "x")
    environment = clean_environment(TQ_PEER="2")
    assert "TQ_HTTP" not in environment
    assert "NODE_ID" not in environment
    assert environment["TQ_PEER"] == "2"


def test_free_ports_are_below_those_of_the_kernel() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port() + 2_000 < low


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("2026-01-01T00:00:00+0000 [taskqueue.node#info] node node-1 is ready", True),
        ("2026-01-01T00:00:00+0000 [taskqueue.node#warn] slow", False),
        ("2026-01-01T00:00:00+0000 [stderr#error] oh", False),
        ("Traceback (most recent call last):", False),
        ("Unhandled error in Deferred:", False),
    ],
)
def test_what_counts_as_a_clean_log(tmp_path: Path, line: str, clean: bool) -> None:
    node = NodeProcess.__new__(NodeProcess)
    node.log_path = tmp_path / "log"
    node.log_path.write_text(f"{line}\n")
    if clean:
        node.assert_log_is_clean()
    else:
        with pytest.raises(AssertionError):
            node.assert_log_is_clean()
        node.assert_log_is_clean(allow="slow|oh|Traceback|Unhandled")


def test_laws_try_as_much_where_ci_is_set_as_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "from hypothesis import settings; import tests.conftest; "
        "given = settings.default; print(given.max_examples, given.derandomize, given.phases, given.suppress_health_check)"
    )
    monkeypatch.delenv("HYPOTHESIS_PROFILE", raising=False)
    plain, ci = (
        subprocess.run(
            [sys.executable, "-c", program],
            env={**clean_environment(), **more},
            cwd=PROJECT,
            capture_output=True,
            check=True,
        ).stdout
        for more in ({}, {"CI": "1"})
    )
    assert plain == ci
    assert plain.startswith(b"50 False")

"""The small parts: addresses, ids, errors."""

from __future__ import annotations

import os
import pickle
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from tq_node import Context, errors, task
from tq_node.api.problems import PROBLEM_KINDS
from tq_node.client import (
    BadAddress,
    InvalidTask,
    NewTask,
    NotFound,
    OutcomeUnknown,
    Refused,
    TaskQueueError,
    Unavailable,
)
from tq_node.client.addresses import parse_addresses
from tq_node.client.calls import is_definite, is_worth_another
from tq_node.client.engine import make_settings, named
from tq_node.client.errors import error_in
from tq_node.client.ids import new_id
from tq_node.runtime.tasks.id_allocator import made_at_us
from tq_node.work import handlers


class TestAddresses:
    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("localhost:8080,8081,8082", ["localhost:8080", "localhost:8081", "localhost:8082"]),
            ("a:1 b:2, 3", ["a:1", "b:2", "b:3"]),
            ("8081", ["localhost:8081"]),
            ("example.org", ["example.org:8080"]),
            ("[::1]:9000,9001", ["[::1]:9000", "[::1]:9001"]),
            ("http://a:1/", ["a:1"]),
            (["a:1", "b:2"], ["a:1", "b:2"]),
            ("localhost:1,127.0.0.1:1,[::1]:1", ["localhost:1"]),
        ],
    )
    def test_as_people_write_them(self, said: str | list[str], meant: list[str]) -> None:
        assert [str(address) for address in parse_addresses(said, tls=False)] == meant

    def test_tls(self) -> None:
        assert [address.tls for address in parse_addresses("https://a:1,http://b:2", tls=False)] == [True, False]
        assert [address.tls for address in parse_addresses("a:1", tls=True)] == [True]

    @pytest.mark.parametrize(
        "said", ["", "a:x", "a:0", "a:65536", "ftp://a:1", "::1:8080", "a/b:1", "u@h:1", [], "a:99999999999"]
    )
    def test_what_is_none(self, said: str | list[str]) -> None:
        with pytest.raises(BadAddress):
            parse_addresses(said, tls=False)


class TestSettings:
    @pytest.mark.parametrize(
        "wrong", [{"token": "a b"}, {"token": "a\r\nX: y"}, {"token": "é"}, {"deadline": 0}, {"deadline": -1}]
    )
    def test_what_does_not_fit_is_said_at_once(self, wrong: dict[str, object]) -> None:
        given = {"token": None, "tls": False, "deadline": 1.0, "batching": True, "discover": True, **wrong}
        with pytest.raises(ValueError, match=r"token|deadline"):
            make_settings("localhost:1", **given)  # type: ignore[arg-type]


class TestIds:
    def test_they_sort_by_time_and_nodes_know_their_age(self) -> None:
        ids = [new_id() for _ in range(3)]
        threading.Event().wait(0.005)  # past the next millisecond
        later = new_id()
        assert max(ids) < later
        assert made_at_us(later) is not None

    def test_no_two_are_equal(self) -> None:
        assert len({new_id() for _ in range(20_000)}) == 20_000

    def test_a_forked_child_draws_others(self) -> None:
        """With its parent's dice it would make the same 62 bits, and within the same microseconds the same ids."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, new_id()[-12:].encode())
            os._exit(0)
        mine = new_id()[-12:]
        os.waitpid(pid, 0)
        theirs = os.read(reading, 100).decode()
        os.close(reading)
        os.close(writing)
        assert mine != theirs


class TestErrors:
    @pytest.mark.parametrize("kind", PROBLEM_KINDS, ids=lambda kind: f"{kind.status} {kind.code}")
    def test_each_code_that_nodes_say_means_here_what_it_means_there(self, kind: type[errors.TaskQueueError]) -> None:
        error = error_in(kind.status, b'{"code":"%b","detail":"why"}' % kind.code.encode())
        assert (error.code, error.status, error.detail) == (kind.code, kind.status, "why")
        if kind.code == "internal":  # nobody knows how far it came
            assert isinstance(error, OutcomeUnknown)
            return
        assert is_worth_another(error) == (kind.retryable or not kind.definite)
        if kind.retryable:
            assert isinstance(error, Unavailable)
            # A submit that was not confirmed may be there all the same.
            assert is_definite(error) == (kind.code != "not_confirmed")
        elif kind.definite:
            assert isinstance(error, Refused)
        else:
            assert isinstance(error, OutcomeUnknown)

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, Refused),
            (404, NotFound),
            (422, InvalidTask),
            (418, Refused),
            (502, OutcomeUnknown),
            (503, Unavailable),
            (504, OutcomeUnknown),
        ],
    )
    def test_an_answer_of_somebody_else(self, status: int, kind: type) -> None:
        error = error_in(status, b"<html>a proxy</html>")
        assert isinstance(error, kind)
        assert str(error) == f"HTTP {status}"

    def test_a_new_word_goes_by_its_status(self) -> None:
        assert isinstance(error_in(503, b'{"code":"on_holiday"}'), Unavailable)
        assert error_in(409, b'{"code":"on_holiday"}').code == "on_holiday"

    def test_they_travel_between_processes(self) -> None:
        error = error_in(422, b'{"code":"invalid_field","detail":"d","field":"/type","task_id":"t","request_id":"r"}')
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, InvalidTask)
        assert isinstance(again, TaskQueueError)
        assert (again.code, again.field, again.task_id, again.request_id, str(again)) == (
            "invalid_field",
            "/type",
            "t",
            "r",
            "d",
        )


def test_mistakes_that_many_make_are_told_what_to_write_instead() -> None:
    @task("greet")
    def greet(payload: str, context: Context) -> None: ...

    def wrong(**fields: Any) -> str:
        with pytest.raises(TypeError) as refused:
            named(NewTask(**{"type": "greet"} | fields))
        return str(refused.value)

    assert wrong(type=greet) == "a task's type is its name: submit('greet', …), or greet.submit(…)"
    assert wrong(type=len) == "a task's type is its name, a str, not len: what @task('name') declares"
    assert (
        wrong(delay=timedelta(minutes=1))
        == "delay is a number of seconds, not a timedelta: say delay=….total_seconds()"
    )
    assert "timeout is a number of seconds" in wrong(timeout=timedelta(minutes=1))
    assert "without a zone" in wrong(run_at=datetime(2026, 12, 1))  # noqa: DTZ001 (what is refused)
    assert "a set has no order" in wrong(payload={1})
    handlers.declared.pop()

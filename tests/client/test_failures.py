"""What the client makes of nodes that refuse, break and hang: the next node, the same bytes, and no more said than is known."""

from __future__ import annotations

import asyncio
import json
import ssl
import time

import pytest

from tests.client.scripted import HANG_UP, Reply, Request, Script, accept, problem, run, scripted, until
from tests.support.harness import free_port
from tq_node.client import (
    AlreadyFinal,
    AsyncQueue,
    Busy,
    IdConflict,
    Incomplete,
    InvalidTask,
    NotFinished,
    OutcomeUnknown,
    Unavailable,
    Unreachable,
    limits,
)
from tq_node.client.addresses import parse_addresses
from tq_node.client.credentials import Credentials, Token
from tq_node.client.roster import Roster

SHORT_S = 1.5
"""Of calls that end at their deadline: long enough for one try on a busy machine."""


def alone(*addresses: str, deadline: float = 30.0) -> AsyncQueue:
    return AsyncQueue(addresses, deadline=deadline, discover=False)


async def hang_up(request: Request) -> str:
    return HANG_UP


async def say_nothing(request: Request) -> str:
    await asyncio.Event().wait()
    return HANG_UP


async def not_primary(request: Request) -> Reply:
    return problem(503, "not_primary", "Retry-After: 1\r\n")


class Once:
    """The first one meets this, all others are accepted."""

    def __init__(self, first: Reply | str) -> None:
        self.first: Reply | str | None = first

    async def __call__(self, request: Request) -> Reply | str:
        if self.first is not None and request.method == "POST":
            first, self.first = self.first, None
            return first
        return await accept(request)


@pytest.mark.parametrize(
    "first",
    [
        HANG_UP,
        problem(503, "not_primary", "Retry-After: 1\r\n"),
        problem(503, "draining", "Retry-After: 1\r\n"),
        problem(429, "busy", "Retry-After: 1\r\n"),
        problem(503, "not_confirmed"),
        problem(504, "outcome_unknown"),
        problem(500, "internal"),
        Reply(502, "a proxy's words"),
        Reply(201, "no task"),
        Reply(201, {"task_id": 7}),
    ],
    ids=lambda first: first if isinstance(first, str) else f"{first.status} {first.body}"[:40],
)
def test_the_same_bytes_go_to_another_node(first: Reply | str) -> None:
    async def story() -> None:
        script = Once(first)
        async with scripted(script) as one, scripted(script) as other, alone(one.address, other.address) as queue:
            task = await queue.submit("email", {"to": "ann"})
            (sent,), (again,) = sorted([one.requests, other.requests], key=len)
            assert sent.body == again.body
            assert sent.json["id"] == task.id

    run(story())


def test_a_node_that_hangs_costs_an_attempt_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ATTEMPT_S", 0.3)

    async def story() -> None:
        async with scripted(say_nothing) as hung, scripted() as well, alone(hung.address, well.address) as queue:
            for _ in range(4):
                await queue.submit("email")
            assert len(set(well.submitted)) == 4

    run(story())


class TestDeadline:
    def test_what_may_have_been_done_is_unknown_and_only_then(self) -> None:
        async def story() -> None:
            async with scripted(hang_up) as node, alone(node.address, deadline=SHORT_S) as queue:
                begun = time.monotonic()
                with pytest.raises(OutcomeUnknown) as caught:
                    await queue.submit("email")
                assert time.monotonic() - begun >= SHORT_S - 0.01
                assert set(node.submitted) == {caught.value.task_id}
                assert len(node.submitted) > 1, "it was sent again before that"

        run(story())

    def test_so_is_what_a_node_still_has(self) -> None:
        async def story() -> None:
            async with scripted(say_nothing) as node, alone(node.address) as queue:
                with pytest.raises(OutcomeUnknown) as caught:
                    await queue.submit("email", deadline=SHORT_S)
                assert node.submitted == [caught.value.task_id]

        run(story())

    def test_a_refusal_takes_nothing_back(self) -> None:
        async def story() -> None:
            first = HANG_UP

            async def script(request: Request) -> Reply | str:
                nonlocal first
                said, first = first, ""
                return said or await not_primary(request)

            async with scripted(script) as node, alone(node.address, deadline=SHORT_S) as queue:
                with pytest.raises(OutcomeUnknown):
                    await queue.submit("email")
                assert len(node.submitted) > 2

        run(story())

    def test_what_was_refused_all_along_was_not_done(self) -> None:
        async def story() -> None:
            async with scripted(not_primary) as node, alone(node.address) as queue:
                with pytest.raises(Unavailable) as caught:
                    await queue.submit("email", deadline=SHORT_S)
                assert caught.value.code == "not_primary"
                with pytest.raises(Unavailable):
                    await queue.get("x", deadline=SHORT_S)

        run(story())

    def test_nobody_is_there(self) -> None:
        async def story() -> None:
            async with alone(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", deadline=SHORT_S) as queue:
                for call in (queue.submit("email"), queue.get("x"), queue.cancel("x"), queue.stats()):
                    with pytest.raises(Unreachable, match="refused"):
                        await call

        run(story())

    def test_a_node_that_asks_for_a_pause_gets_it(self) -> None:
        async def story() -> None:
            async def busy(request: Request) -> Reply:
                return problem(429, "busy", "Retry-After: 5\r\n")

            async with scripted(busy) as node, alone(node.address) as queue:
                with pytest.raises(Busy):
                    await queue.submit("email", deadline=SHORT_S)
                assert len(node.requests) == 1
                for call in (queue.submit("email", deadline=SHORT_S), queue.stats(deadline=SHORT_S)):
                    with pytest.raises(Busy, match="pause"):
                        await call
                assert len(node.requests) == 1, "the whole client leaves it alone"

        run(story())


def test_refusals_are_told_at_once() -> None:
    async def story() -> None:
        async def script(request: Request) -> Reply:
            return (
                problem(409, "id_conflict")
                if request.json["id"] == "mine"
                else problem(422, "invalid_field", field="/type")
            )

        async with scripted(script) as node, alone(node.address) as queue:
            with pytest.raises(IdConflict):
                await queue.submit("email", id="mine")
            with pytest.raises(InvalidTask) as caught:
                await queue.submit("")
            assert (caught.value.field, caught.value.status) == ("/type", 422)
            assert len(node.requests) == 2

    run(story())


class TestDownNodes:
    def test_are_skipped_and_come_back(self) -> None:
        async def story() -> None:
            port = free_port()
            async with scripted() as well, alone(f"127.0.0.1:{port}", well.address) as queue:
                for _ in range(20):
                    await queue.submit("email")
                async with scripted(port=port) as back:
                    async with asyncio.timeout(30):
                        while not back.submitted:
                            await queue.submit("email")
                            await asyncio.sleep(0.01)
                    assert not set(back.submitted) & set(well.submitted)

        run(story())

    def test_calls_do_not_try_them_out(self) -> None:
        async def story() -> None:
            async with scripted(hang_up) as down, scripted() as well, alone(down.address, well.address) as queue:
                for _ in range(30):
                    await queue.submit("email")
                assert len(down.requests) == 1, "only the first met it; whether it is back, probes find out"

        run(story())


class TestDiscovery:
    def test_members_are_learnt_and_the_leaving_left(self) -> None:
        async def story() -> None:
            members: list[dict[str, object]] = []

            async def script(request: Request) -> Reply | str:
                if request.path == "/cluster":
                    return Reply(200, {"cluster": {"nodes": members}})
                return await accept(request)

            async with scripted(script) as given, scripted(script) as other, scripted(script) as down:
                members += [
                    {"id": name, "status": status, "services": {"http": node.address}}
                    for name, status, node in [("a", "active", given), ("b", "suspect", other), ("c", "down", down)]
                ]
                members.append({"id": "d", "status": "active", "services": {"http": "no address"}})
                async with AsyncQueue(given.address) as queue:
                    async with asyncio.timeout(30):
                        while not other.submitted:
                            await queue.submit("email")
                            await asyncio.sleep(0.01)
                    assert list(queue.addresses) == [given.address, other.address]
                    assert not down.requests

        run(story())

    def test_a_token_goes_to_given_addresses_and_never_along_with_a_probe(self) -> None:
        async def story() -> None:
            seen: list[Request] = []

            async def script(request: Request) -> Reply | str:
                seen.append(request)
                if request.path == "/cluster":
                    return Reply(
                        200, {"cluster": {"nodes": [{"status": "active", "services": {"http": other.address}}]}}
                    )
                return HANG_UP if request.path == "/tasks/submit" and not probed() else await accept(request)

            def probed() -> bool:
                return any(request.path == "/livez" for request in seen)

            async with scripted() as other, scripted(script) as given:
                async with AsyncQueue(given.address, token="s3cret") as queue:
                    await queue.submit("email")
                    await until(lambda: any(request.path == "/cluster" for request in seen))
                    await queue.submit("email")
                    assert list(queue.addresses) == [given.address]
                assert not other.requests
            assert probed()
            for request in seen:
                assert ("authorization" in request.headers) is (request.path != "/livez"), request

        run(story())

    @pytest.mark.parametrize(
        ("token", "tls", "context", "is_given", "is_learnt"),
        [
            (None, False, None, False, True),
            (None, True, ssl.create_default_context(), False, True),
            (None, True, None, False, False),
            ("s3cret", False, None, False, False),
            ("s3cret", True, ssl.create_default_context(), True, True),
            ("s3cret", True, ssl.create_default_context(), False, False),
            ("s3cret", False, ssl.create_default_context(), True, False),
            ("s3cret", True, ssl._create_unverified_context(), True, False),
        ],
    )
    def test_a_token_goes_to_learnt_addresses_by_tls_of_the_given_authority_alone(
        self, token: str | None, tls: bool, context: ssl.SSLContext | None, is_given: bool, is_learnt: bool
    ) -> None:
        async def story() -> None:
            loop = asyncio.get_running_loop()
            credentials = Credentials(None if token is None else Token(token), context, has_authority=is_given)
            roster = Roster(loop, parse_addresses("127.0.0.1:1", tls=tls), credentials=credentials, discover=False)
            body = json.dumps({"cluster": {"nodes": [{"services": {"http": "127.0.0.1:2"}}]}}).encode()
            roster._apply_members(body, tls=tls)
            assert roster.addresses == ["127.0.0.1:1", *(["127.0.0.1:2"] if is_learnt else [])]
            roster.close()

        run(story())

    def test_a_name_that_leads_nowhere_costs_no_call_anything(self) -> None:
        async def story() -> None:
            nowhere = {"id": "x", "status": "active", "services": {"http": "no-such-host.invalid:1"}}

            async def script(request: Request) -> Reply | str:
                if request.path == "/cluster":
                    return Reply(200, {"cluster": {"nodes": [nowhere]}})
                return await accept(request)

            async with scripted(script) as node, AsyncQueue(node.address) as queue:
                await queue.submit("email")
                await until(lambda: len(queue.addresses) == 2)
                for _ in range(20):
                    await queue.submit("email")
                assert len(node.submitted) == 21

        run(story())


class TestChangesWhoseAnswerWasLost:
    @pytest.mark.parametrize(("status", "is_ours"), [("cancelled", True), ("completed", False)])
    def test_cancel(self, status: str, is_ours: bool) -> None:
        async def story() -> str:
            first = True

            async def script(request: Request) -> Reply | str:
                nonlocal first
                if request.path.startswith("/tasks/status"):
                    return Reply(200, task(status))
                if first:
                    first = False
                    return HANG_UP
                return problem(409, "already_final")

            async with scripted(script) as node, alone(node.address) as queue:
                return await queue.cancel("t")

        if is_ours:
            assert run(story()) == "cancelled"
        else:
            with pytest.raises(AlreadyFinal):
                run(story())

    def test_retry(self) -> None:
        async def story() -> None:
            async def script(request: Request) -> Reply | str:
                if request.path.startswith("/tasks/status"):
                    return Reply(200, task("processing"))
                return HANG_UP if len(node.requests) == 1 else problem(409, "not_retryable")

            async with scripted(script) as node, alone(node.address) as queue:
                assert await queue.retry("t") == "processing"

        run(story())


class TestReads:
    def test_a_wait_goes_on_at_another_node(self) -> None:
        async def story() -> None:
            async def ended(request: Request) -> Reply:
                return Reply(200, task("completed") | {"result": 7})

            async with scripted(hang_up) as one, scripted(ended) as other, alone(one.address, other.address) as queue:
                assert await queue.result("t") == 7
                assert await queue.result("t", timeout=5) == 7

        run(story())

    def test_a_wait_ends_when_it_should(self) -> None:
        async def story() -> None:
            async def pending(request: Request) -> Reply:
                return Reply(200, task("pending"))

            async with scripted(pending) as node, alone(node.address) as queue:
                with pytest.raises(NotFinished) as caught:
                    await queue.wait("t", timeout=0.1)
                assert caught.value.task.status == "pending"

        run(story())

    @pytest.mark.parametrize(("primary", "state"), [("node-2", "active"), ("node-1", "starting"), (None, "offline")])
    def test_what_is_missing_is_said(self, primary: str | None, state: str) -> None:
        async def story() -> None:
            node_1_has_all = missing_is("node-2", primary, state)
            async with scripted(node_1_has_all) as node, alone(node.address, deadline=SHORT_S) as queue:
                with pytest.raises(Incomplete) as caught:
                    await queue.stats()
                assert caught.value.missing == ("node-2",)
                assert (await queue.stats(partial=True)).missing == ("node-2",)
                with pytest.raises(Incomplete):
                    [found async for found in queue.list()]
                assert len([found async for found in queue.list(partial=True)]) == 1

        run(story())

    def test_a_dead_member_that_leads_nothing_is_not_missed(self) -> None:
        async def story() -> None:
            async with scripted(missing_is("node-2", "node-1", "active")) as node, alone(node.address) as queue:
                assert (await queue.stats()).missing == ("node-2",)
                assert [request.path.partition("?")[0] for request in node.requests] == [
                    "/tasks/stats", "/cluster/partitions", "/tasks/stats",
                ], "counted again after it was known that others lead: before, they may not have"  # fmt: skip
                assert len([found async for found in queue.list()]) == 1

        run(story())

    def test_an_answer_that_nobody_waits_for_meets_nobody_else(self) -> None:
        """The caller was cancelled while its request was out: its connection goes."""

        async def story() -> None:
            release = asyncio.Event()

            async def script(request: Request) -> Reply:
                if "id=slow" in request.path:
                    await release.wait()
                return Reply(200, task("pending") | {"id": request.path.rpartition("=")[2]})

            async with scripted(script) as node, alone(node.address) as queue:
                slow = asyncio.create_task(queue.get("slow"))
                await until(lambda: node.requests)
                slow.cancel()
                await asyncio.gather(slow, return_exceptions=True)
                release.set()
                for name in ("a", "b", "c"):
                    assert (await queue.get(name)).id == name

        run(story())


def missing_is(name: str, primary: str | None, state: str) -> Script:
    counts = dict.fromkeys(("total", "pending", "processing", "completed", "failed", "scheduled", "cancelled"), 0)
    answers = {
        "/tasks/stats": {"stats": counts, "missing": [name]},
        "/tasks/list": {"tasks": [task("pending")], "next": None, "missing": [name]},
        "/cluster/partitions": {"partitions": [{"partition": 0, "primary": primary, "state": state}]},
    }

    async def script(request: Request) -> Reply:
        return Reply(200, answers[request.path.partition("?")[0]])

    return script


def task(status: str) -> dict[str, object]:
    when = "2026-01-02T03:04:05.000006Z"
    return {
        "id": "t", "type": "email", "payload": None, "status": status, "queue": "default", "priority": 5, "attempt": 0,
        "max_attempts": 3, "created_at": when, "run_at": when, "node": "n", "partition": 1, "version": 1, "tags": {},
        "log": [], "attempts": [], "from_a_newer_node": True,
    }  # fmt: skip

"""What only the client over HTTP has to get right: deadlines, nonsense, streams that begin anew, tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.howto.conftest import make_certificate
from tq_tui.__main__ import USAGE_STATUS, main
from tq_tui.client import credentials, http
from tq_tui.client.api import Refused, Unreachable
from tq_tui.client.credentials import Credentials
from tq_tui.client.exposition import read_metrics
from tq_tui.client.http import HttpCluster
from tq_tui.client.shallow import CUT, is_deep, shallow
from tq_tui.filters import TaskQuery
from tq_tui.format import pretty_json

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that answers each request's head with what the handler writes, and then closes. Gives its address."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(await reader.readuntil(b"\r\n\r\n"), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def answered(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        status, kind, len(body), body,
    )  # fmt: skip


async def test_a_node_that_hangs_costs_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    has_given_up = asyncio.Event()

    async def hang(head: bytes, writer: asyncio.StreamWriter) -> None:
        await has_given_up.wait()

    monkeypatch.setattr(http, "WATCH_S", 0.1)
    async with serving(hang) as address:
        client = HttpCluster()
        with pytest.raises(Unreachable, match="no answer in time") as unreachable:
            await client.at(address).stats()
        assert unreachable.value.sent, "it may have arrived"
        has_given_up.set()  # not before: else it would wait for ever
        await client.close()


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"node":7}', b"\xff\xfe", b"null"])
async def test_nonsense_is_a_refusal_and_no_traceback(body: bytes) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answered(body))
        await writer.drain()

    async with serving(answer) as address:
        client = HttpCluster()
        with pytest.raises(Refused, match="not what a node says"):
            await client.at(address).stats()
        await client.close()


async def test_problem_documents_and_pages_of_proxies() -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        if b"/tasks/stats" in head:
            writer.write(answered(b'{"code":"busy","title":"Busy","detail":"later"}', b"429 Too Many Requests"))
        else:
            writer.write(answered(b"<html>", b"502 Bad Gateway", b"text/html"))
        await writer.drain()

    async with serving(answer) as address:
        client = HttpCluster()
        with pytest.raises(Refused, match="later") as refused:
            await client.at(address).stats()
        assert (refused.value.code, refused.value.try_elsewhere) == ("busy", True)
        with pytest.raises(Refused, match="HTTP 502"):
            await client.at(address).cluster()
        await client.close()


async def test_a_stream_goes_on_behind_its_last_event_and_says_where_it_could_not() -> None:
    heads: list[bytes] = []
    data = b'{"task_id":"t%d","type":"x","queue":"q","from":null,"to":"pending","at":"2026-01-01T00:00:00Z","more":1}'

    async def stream(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 2000\n\n: hello\n\n"
        )
        if len(heads) == 2:
            writer.write(b"event: reset\ndata: {}\n\n")
        # An event in two pieces, and one that is none.
        writer.write(b"id: %d\nevent: task\nda" % len(heads))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"ta: " + data % len(heads) + b"\n\nid: 9\nevent: task\ndata: {broken\n\n")
        await writer.drain()

    async with serving(stream) as address:
        client = HttpCluster()
        first = [heap async for heap in client.at(address).events()]
        assert [event.task_id for heap in first for event in heap] == ["t1"]
        second = [heap async for heap in client.at(address).events()]
        assert [len(heap) for heap in second] == [0, 1]
        assert b"Last-Event-ID" not in heads[0]
        assert b"Last-Event-ID: 9" in heads[1]
        await client.close()


async def test_a_token_goes_along_and_is_not_written_down() -> None:
    heads: list[bytes] = []
    curls: list[str] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(answered(b'{"success":true}'))
        await writer.drain()

    async with serving(answer) as address:
        client = HttpCluster(Credentials(token="s3cret", given=[address]))
        client.on_call = lambda call: curls.append(call.curl)
        await client.at(address).pause("slow queue")
        await client.close()
    assert b"Authorization: Bearer s3cret" in heads[0]
    assert "s3cret" not in curls[0]
    assert "$TQ_TOKEN" in curls[0]
    assert "queue=slow+queue" in curls[0]


async def test_a_token_goes_to_given_addresses_and_to_others_only_where_the_authority_vouches(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(answered(b'{"success":true}'))
        await writer.drain()

    async with serving(answer) as address:
        client = HttpCluster(Credentials(token="s3cret", given=["localhost:1"]))
        await client.at(address).pause("q")
        await client.close()
    assert b"Authorization" not in heads[0]
    authority = make_certificate(tmp_path / "node.pem")
    for ca, learnt in ((None, None), (authority, "s3cret")):
        shown = Credentials(token="s3cret", given=["localhost:1"], ca=ca)
        assert shown.token_for("localhost:1") == "s3cret"
        assert shown.token_for("https://learnt.example.org:8080") == learnt
        assert shown.token_for("learnt.example.org:8080") is None


async def test_https_is_asked_where_the_authority_vouches_and_not_else(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path / "node.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority)

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answered(b'{"success":true}'))
        await writer.drain()

    async with serving(answer, tls=context) as address:
        client = HttpCluster(Credentials(ca=authority))
        assert (await client.at(f"https://{address}").pause("q")).success
        await client.close()
        doubtful = HttpCluster()
        with pytest.raises(Unreachable, match="certificate"):
            await doubtful.at(f"https://{address}").pause("q")
        await doubtful.close()


def test_a_token_of_a_file_changes_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LOOK_S", 0.0)
    file = tmp_path / "token"
    file.write_text("first\n")
    shown = Credentials(token_file=file, given=["localhost:1"])
    assert shown.token_for("localhost:1") == "first"
    for text, token in (("second\n", "second"), ("two words", "second"), (None, "second"), ("third", "third")):
        if text is None:
            file.unlink()
        else:
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(file)
        assert shown.token_for("localhost:1") == token


@pytest.mark.parametrize("option", ["--token-file", "--ca"])
def test_an_unfit_file_is_said_in_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--once", option, str(tmp_path / "none")]) == USAGE_STATUS
    said = capsys.readouterr().err
    assert said.startswith(f"tq-tui: {option}: ")
    assert said.count("\n") == 1


def test_metrics_are_read_and_the_rest_is_skipped() -> None:
    lines = [
        "# HELP taskqueue_workers …",
        'taskqueue_workers{state="busy"} 3.0',
        'taskqueue_workers{state="idle"} 13.0',
        'taskqueue_tasks_submitted_total{queue="default",type="a"} 5.0',
        'taskqueue_tasks_submitted_total{queue="bulk",type="b"} 2.0',
        'taskqueue_tasks_finished_total{outcome="completed",queue="default",type="a"} 4.0',
        'taskqueue_tasks_finished_total{outcome="failed",queue="default",type="a"} 1.0',
        'taskqueue_queue_oldest_ready_age_seconds{queue="de\\"f}ault"} 2.5',
        'taskqueue_queue_paused{queue="bulk"} 1.0',
        'taskqueue_queue_paused{queue="default"} 0.0',
        'taskqueue_build_info{node="n",version="0.1.0"} 1.0',
        'taskqueue_task_run_seconds_bucket{le="1",queue="default",type="a"} 7.0',
        "process_start_time_seconds 1.7e+09",
        "process_resident_memory_bytes 6.9e+07",
        "process_cpu_seconds_total 0.9",
        "taskqueue_workers nonsense of some kind",
    ]
    text = "\n".join(lines)
    metrics = read_metrics(text)
    assert (metrics.busy, metrics.slots, metrics.submitted, metrics.completed, metrics.failed) == (3, 16, 7, 4, 1)
    assert metrics.oldest_age_s == {'de"f}ault': 2.5}
    assert (metrics.paused, metrics.version, metrics.memory_bytes) == (("bulk",), "0.1.0", 69_000_000)
    assert read_metrics("").slots == 0


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [300, 960, 988, 100_000])
async def test_a_result_that_is_nested_too_deep_is_cut_and_the_others_are_shown(levels: int) -> None:
    """Of stores that were written before results had a bound. Nobody's console ends for it."""
    task = b'{"id":"%b","type":"t","status":"completed","result":%b,"tags":{"[":"]\\""},"queue":"q"}'
    page = b'{"tasks":[%b,%b],"next":null}' % (task % (b"a", deep(levels)), task % (b"b", b"[1]"))

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answered(page if b"/tasks/list" in head else task % (b"a", deep(levels))))
        await writer.drain()

    async with serving(answer) as address:
        client = HttpCluster()
        tasks = (await client.at(address).tasks(TaskQuery())).tasks
        assert [(task.id, task.tags) for task in tasks] == [("a", {"[": ']"'}), ("b", {"[": ']"'})]
        assert tasks[1].result == [1]
        shown = pretty_json(tasks[0].result)
        assert "nested" in shown or levels < 960
        assert (await client.at(address).task("a")).id == "a"
        await client.close()


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"[[1],2]", b"[[1],2]"),
        (b"[[[1,[2]]],3]", b"[[%b],3]" % CUT),
        (b'[{"[[[":["]"]}]', b'[{"[[[":%b}]' % CUT),
        (b'["\\"[[[",[1]]', b'["\\"[[[",[1]]'),
        (b"[[[1", b"[[%b" % CUT),
        (b"]]]]", b"]]]]"),
    ],
)
def test_what_is_cut(body: bytes, kept: bytes) -> None:
    assert shallow(body, 2) == kept
    assert is_deep(body, 2) == (kept != body)

"""Words, numbers, filters, forms, addresses, keys: functions of what they are given."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.tui.test_state import NAMES, fold, partitions, polled, whole
from tq_tui import charts, keys, partition_map, task_view
from tq_tui import format as f
from tq_tui.addresses import BadAddress, parse_addresses, same_place
from tq_tui.client.models import Attempt, Metrics, Partition, Readiness, Reason, Task, TaskError, WaitsFor
from tq_tui.filters import BadFilter, Choice, TaskQuery, parse
from tq_tui.forms import BadField, read_delay, read_number, read_payload, read_type
from tq_tui.requests import Outcome, reported
from tq_tui.screens.help import help_lines
from tq_tui.screens.overview import overview
from tq_tui.state.cluster_view import Failed
from tq_tui.state.health import node_note
from tq_tui.widgets.plain import content
from tq_tui.widgets.rows import Column, fitting


# --- addresses ---
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ([], ("localhost:8080",)),
        (["localhost:8080,8081,8082"], ("localhost:8080", "localhost:8081", "localhost:8082")),
        (["a:1", "b:2"], ("a:1", "b:2")),
        (["a:1,2", "b", "3"], ("a:1", "a:2", "b:8080", "b:3")),
        (["8081"], ("localhost:8081",)),
        ([":8081"], ("localhost:8081",)),
        (["[::1]:8080,8081"], ("[::1]:8080", "[::1]:8081")),
        (["http://a:1/", "https://b:2"], ("a:1", "https://b:2")),
        (["a:1,a:1, ,"], ("a:1",)),
    ],
)
def test_addresses(typed: list[str], found: tuple[str, ...]) -> None:
    assert parse_addresses(typed) == found


@pytest.mark.parametrize("typed", ["a:b", "a:0", "a:70000", "::1", "ftp://a:1"])
def test_no_addresses(typed: str) -> None:
    with pytest.raises(BadAddress):
        parse_addresses([typed])


def test_the_names_of_this_machine_are_one_place() -> None:
    assert same_place("localhost:8080") == same_place("127.0.0.1:8080") == same_place("http://[::1]:8080/")
    assert same_place("box:8080") != same_place("localhost:8080")


# --- filters ---
def test_a_filter_becomes_parameters() -> None:
    query = parse("status:fail,canc type:email !queue:bulk some text")
    assert query.parameters() == [
        ("status", "failed,cancelled"), ("type", "email"), ("queue", "!bulk"), ("q", "some text"),
        ("sort", "-created_at"), ("limit", "200"), ("scope", "cluster"),
    ]  # fmt: skip
    assert parse("node:!node-1").choices == (("node", Choice(("node-1",), negated=True)),)
    assert parse("type:a type:b").choices == (("type", Choice(("a", "b"))),)
    assert parse("own:id:7 http://x").text == "own:id:7 http://x", "what is no field is text"
    assert parse("state:completed").choices == parse("s:comp").choices
    assert parse("", TaskQuery(sort="id", dead=True)).path == "/tasks/dead"
    assert parse("x", TaskQuery(cursor="c")).cursor is None


@pytest.mark.parametrize("typed", ["status:bad", "status:", "!text", "status:p", "type:a !type:b"])
def test_what_can_not_be_asked_says_what_to_type(typed: str) -> None:
    with pytest.raises(BadFilter, match=r"."):
        parse(typed)


# --- forms ---
@pytest.mark.parametrize(
    ("typed", "value", "said"),
    [
        ("", None, "null"),
        ('{"a": [1, 2]}', {"a": [1, 2]}, "JSON object, 1 field"),
        ("[1,2]", [1, 2], "JSON array, 2 items"),
        ('"x"', "x", "JSON string"),
        ("12.5", 12.5, "JSON number"),
        ("true", True, "JSON true"),
        ("null", None, "JSON null"),
        ("user@example.com", "user@example.com", "text, sent as a JSON string"),
        ("zażółć gęślą", "zażółć gęślą", "text, sent as a JSON string"),
    ],
)
def test_payloads(typed: str, value: object, said: str) -> None:
    payload = read_payload(typed)
    assert (payload.value, payload.said, payload.error) == (value, said, "")


@pytest.mark.parametrize("typed", ['{"a":', "[1,", "{a: 1}", '"x', "12x", "NaN", "-Infinity", "[" * 100_000])
def test_payloads_that_are_broken_json(typed: str) -> None:
    assert read_payload(typed).error


def test_fields() -> None:
    assert [read_delay(text) for text in ("", "90", "1.5s", "5m", "2 h", "1d")] == [None, 90, 1.5, 300, 7200, 86400]
    assert (read_number("", 0, 9), read_number(" 7 ", 0, 9), read_type(" email ")) == (None, 7, "email")
    for bad in ("x", "-1", "1w", "9999999d"):
        with pytest.raises(BadField):
            read_delay(bad)
    for bad in ("10", "-1", "x", "1.5"):
        with pytest.raises(BadField):
            read_number(bad, 0, 9)
    with pytest.raises(BadField):
        read_type("")


# --- numbers and words ---
def test_durations_fit_five_cells() -> None:
    shown = [f.duration(s) for s in (0, 0.08, 1, 9.5, 42, 185, 7_620, 356_400, 8e6)]
    assert shown == ["0ms", "80ms", "1.0s", "9.5s", "42s", "3m05", "2h07", "4d03", "92d14"]
    assert all(len(f.duration(10**n * k)) <= 5 for n in range(-3, 6) for k in (1, 5.96, 9.99))


def test_counts_fit_five_cells() -> None:
    assert [f.count(n) for n in (0, 999, 1_234, 12_345, 999_999, 1_234_567)] == [
        "0",
        "999",
        "1.23k",
        "12.3k",
        "1.00M",
        "1.23M",
    ]
    assert all(len(f.count(10**n * k)) <= 5 for n in range(10) for k in (1, 5, 9.99))
    assert (f.exact(1_234_567), f.rate(0.0), f.rate(3.25), f.rate(2_500)) == ("1 234 567", "0/s", "3.2/s", "2.50k/s")
    assert [f.size(n) for n in (0, 1_000, 70_000_000)] == ["0B", "1.0K", "66.8M"]


@pytest.mark.parametrize("text", ["abc", "日本語のタスク", "a\x1b[31mb\nc", "é" * 40, "", "👩‍🚀 astronaut"])
@pytest.mark.parametrize("width", [1, 5, 12])
def test_what_is_shown_has_its_width_and_moves_no_cursor(text: str, width: int) -> None:
    for shown in (f.fit(text, width), f.fit(text, width, right=True), f.fit_middle(text, width)):
        assert cell_len(shown) == width
        assert "\x1b" not in shown
        assert "\n" not in shown


def test_charts() -> None:
    assert f.sparkline([0, 1, 2, 4], 6) == "  ▁▂▄█"
    assert f.sparkline([], 3) == "   "
    assert f.bar_chart([0, 1, 2], 4, 2) == ["   █", " ▁██"]
    assert f.bar_chart([0, 0.01, 100], 3, 1) == ["▁▂█"], "little is more than nothing"
    assert f.sparkline([0, 0.01, 100], 3) == "▁▂█"
    assert f.meter(1, 4, 8) == "██░░░░░░"
    assert f.meter(0, 0, 4) == "░░░░"


# --- keys ---
def test_no_key_means_two_things_on_one_screen() -> None:
    for _, screen, _ in keys.SCREENS:
        pressed = Counter(key for act in keys.available(screen, readonly=False) for key in act.keys)
        assert [key for key, number in pressed.items() if number > 1] == []


def test_readonly_hides_all_that_changes() -> None:
    for _, screen, _ in keys.SCREENS:
        shown = {act.id for act in keys.available(screen, readonly=True)}
        assert not shown & {
            "submit",
            "kill",
            "kill-all",
            "retry",
            "pause",
            "drain",
            "remove",
            "shutdown",
            "rebalance",
            "undo",
        }


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_help_and_quit_are_never_cut(width: int) -> None:
    for _, screen, _ in keys.SCREENS:
        shown = keys.footer(keys.available(screen, readonly=False), width)
        assert [act.id for act in shown[-2:]] == ["help", "quit"]
        assert sum(len(keys.shown(act.keys[0])) + len(act.short) + 3 for act in shown) <= max(width, 16)


def test_help_has_every_action_and_can_be_searched() -> None:
    text = content(help_lines(keys.TASKS, "", readonly=False)).plain
    for act in keys.available(keys.TASKS, readonly=False):
        assert act.title in text
    assert "Kill all" in content(help_lines(keys.TASKS, "kill", readonly=False)).plain
    assert "Quit" not in content(help_lines(keys.TASKS, "kill", readonly=False)).plain
    assert content(help_lines(keys.TASKS, "zzz", readonly=False)).plain == "nothing found"


# --- columns ---
def test_columns_go_by_rank_and_the_rest_is_shared() -> None:
    columns: list[Column[str]] = [
        Column("a", "a", 5, lambda row: (row, ""), rank=0, grow=1),
        Column("b", "b", 10, lambda row: (row, ""), rank=2),
        Column("c", "c", 5, lambda row: (row, ""), rank=1, grow=1, width_max=7),
    ]
    assert [(column.key, width) for column, width in fitting(columns, 40)] == [("a", 21), ("b", 10), ("c", 7)]
    assert [(column.key, width) for column, width in fitting(columns, 12)] == [("a", 6), ("c", 5)]
    assert [column.key for column, _ in fitting(columns, 3)] == ["a"]


# --- drawings ---
@pytest.mark.parametrize("size", [(60, 13), (80, 21), (120, 37), (200, 47), (30, 8)])
def test_the_overview_is_never_wider_than_the_screen(size: tuple[int, int]) -> None:
    view = fold(Failed("127.0.0.1:8082", 12.0, "a rather long reason why nobody answers there"), view=whole())
    for line in overview(view, *size):
        assert charts.length(line) <= size[0]


def test_many_nodes_become_lines() -> None:
    lines = charts.cards(whole(), 78, 3)
    assert len(lines) == 3
    assert content(lines[:1]).plain.startswith("●★node-1")


def test_the_map_shows_what_a_node_is_to_a_partition() -> None:
    entry = Partition(0, "a", ("b", "c"), ("a", "b"), epoch=9, adding=("d",), removing=("e",))
    assert [partition_map.mark(entry, name) for name in "abcdef"] == ["█", "▒", "!", "+", "-", "·"]
    assert partition_map.moves(fold(polled("node-1", 12.0, partitions=[entry]), view=whole())) != []
    view = fold(*(polled(name, 12.0, partitions=partitions("node-2", epoch=9)) for name in NAMES), view=whole())
    text = content(partition_map.partition_map(view, 80, 2)).plain
    assert "node-2 ████" in text
    assert "▼" in text
    assert "node-2 ████████████" in content(partition_map.partition_map(view, 80, 2)).plain, "wide where there is room"
    for width in (12, 30, 80):
        assert all(charts.length(line) <= width for line in partition_map.partition_map(view, width))


# --- why it waits ---
def waiting(status: str, **fields: object) -> Task:
    return Task(id="t", type="email", status=status, node="node-1", **fields)  # type: ignore[arg-type]


def test_why_it_waits() -> None:
    view = whole(1_000.0)
    due = datetime.fromtimestamp(1_090, UTC)
    assert "submitted for later: due in 1m30" in task_view.why(waiting("scheduled", run_at=due), view)
    failed = Attempt(1, outcome="failed", error=TaskError("E", "broke"))
    again = task_view.why(waiting("scheduled", run_at=due, attempt=1, attempts=(failed,)), view)
    assert again == "Attempt 1 failed: broke; the next one is due in 1m30 (back-off)."
    assert "as soon as a slot is free" in task_view.why(waiting("pending"), view)
    busy = fold(polled("node-1", 1_001.0, metrics=Metrics(busy=16)), view=view)
    assert "All 16 slots of node-1 are busy" in task_view.why(waiting("pending"), busy)
    paused = fold(polled("node-1", 1_001.0, metrics=Metrics(idle=1, paused=("default",))), view=view)
    assert "paused" in task_view.why(waiting("pending"), paused)
    gone = fold(Failed("127.0.0.1:8081", 1_001.0, "connection refused"), view=view)
    assert "does not answer" in task_view.why(waiting("pending"), gone)
    offline = fold(*(polled(n, 1_001.0, partitions=partitions(None, epoch=3)) for n in NAMES), view=view)
    assert "no node leads it" in task_view.why(waiting("pending"), offline)
    unhandled = task_view.why(waiting("pending", waiting_for=(WaitsFor("no_handler"),)), view)
    assert unhandled == "No node that is up has a handler for 'email': it runs once one comes."
    held = WaitsFor("type_paused", None, "email", due)
    assert "Type 'email' is paused until" in task_view.why(waiting("pending", waiting_for=(held,)), view)
    assert "Too few copies" in task_view.why(waiting("pending", waiting_for=(WaitsFor("copies"),)), view)
    stopped = task_view.why(waiting("pending", waiting_for=(WaitsFor("queue_paused"),)), view)
    assert stopped == "Queue default is paused; P lets it go on."
    lost = task_view.why(waiting("failed", error=TaskError("attempts_lost", "")), view)
    assert "three attempts were lost" in lost
    assert "No node has a handler" in task_view.why(waiting("failed", error=TaskError("no_handler", "")), view)


def test_a_node_without_handlers_says_so() -> None:
    (plain, *_) = whole(1_000.0).nodes
    assert node_note(plain) == ""
    noted = fold(
        polled("node-1", 1_001.0, readiness=Readiness(True, notes=(Reason("no_handlers"),))), view=whole(1_000.0)
    )
    assert node_note(next(node for node in noted.nodes if node.name == "node-1")) == "runs nothing: no handlers"


def test_many_outcomes_are_three_sentences_at_most() -> None:
    assert reported("Killed", [Outcome("a"), Outcome("b")]) == ("Killed 2", True)
    words, good = reported("Killed", [Outcome("a"), *(Outcome(str(n), "the task is completed") for n in range(3))])
    assert (words, good) == ("Killed 1, 3 not: 3 x the task is completed", False)


def test_the_reference_has_every_key() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "console.md").read_text("utf-8")
    titles = {name: title for _, name, title in keys.SCREENS}
    for act in keys.ACTS:
        pressed = " ".join(f"`{keys.shown(key)}`" for key in act.keys)
        where = "everywhere" if act.where == keys.EVERYWHERE else ", ".join(titles[n] for n in titles if n in act.where)
        assert f"| {pressed} | {act.title}{' †' if act.changes else ''} | {where} |" in page

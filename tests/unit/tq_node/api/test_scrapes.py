"""``GET /metrics`` never holds the reactor for long, and is made once for all who ask at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.defer import Deferred

from tests.unit.tq_node.api.talk import Connection, World
from tq_node import limits
from tq_node.errors import NotReady
from tq_node.observe.exposition import Exposition


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def slow_clock(world: World, *, between: Callable[[int], object] = lambda number: None) -> list[int]:
    """Each look at the clock finds a millisecond gone: a slice is over after its fifth block. Returns what counts the slices.

    :param between: called with its number before each slice but the first.
    """
    looks = itertools.count()
    world.site.server.slices.now_s = lambda: next(looks) / 1_000
    slices: list[int] = []

    def counted(what: str) -> None:
        slices.append(len(slices))
        between(slices[-1])

    world.site.server.slices.on_slice = counted
    return slices


def ask(world: World, count: int = 1) -> list[Connection]:
    clients = [world.connect() for _ in range(count)]
    for client in clients:
        client.request("GET", "/metrics")
    return clients


def hang_up(*clients: Connection) -> None:
    for client in clients:
        client.transport.hang_up()


def fill(world: World, pairs: int = 2_000) -> None:
    for number in range(pairs):
        world.metrics.queue_seen(f"q{number % 10:03}")
        world.metrics._pair(f"q{number % 10:03}", f"t{number // 10:03}").submitted += 1


def test_a_page_is_made_in_slices(world: World) -> None:
    fill(world)
    slices = slow_clock(world)
    (client,) = ask(world)
    assert client.replies() == []
    world.clock.advance(0)
    (reply,) = client.replies()
    assert len(slices) > 50
    samples = [sample for family in parse_text(reply.body.decode()) for sample in family.samples]
    assert sum(one.value for one in samples if one.name == "taskqueue_tasks_submitted_total") == 2_000


def test_others_are_served_between_two_slices(world: World) -> None:
    fill(world)
    other = world.connect()

    def between(number: int) -> None:
        if number == 3:
            other.request("GET", "/health")
            assert len(other.replies()) == 1
            assert scraper.replies() == []

    slices = slow_clock(world, between=between)
    (scraper,) = ask(world)
    world.clock.advance(0)
    assert len(slices) > 3
    assert len(scraper.replies()) == len(other.replies()) == 1


def count_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    blocks = Exposition.blocks

    def counted(self: Exposition, content_type: str, ages: dict[str, float]) -> Iterator[str]:
        made.append(content_type)
        return blocks(self, content_type, ages)

    monkeypatch.setattr(Exposition, "blocks", counted)
    return made


def test_all_who_ask_meanwhile_get_the_same_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_pages(world, monkeypatch)
    fill(world)
    second: list[Connection] = []
    slow_clock(world, between=lambda number: second.extend(ask(world, 10) if number == 5 else []))
    first = ask(world, 10)
    world.clock.advance(0)
    assert len(second) == 10
    pages = {client.replies()[0].body for client in first + second}
    assert len(pages) == 1
    assert len(made) == 1


def test_a_page_lasts_for_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_pages(world, monkeypatch)
    first = world.get("/metrics").body
    world.submit()
    world.clock.advance(limits.METRICS_PAGE_S - 0.1)
    assert world.get("/metrics").body == first
    world.clock.advance(0.2)
    assert world.get("/metrics").body != first
    assert len(made) == 2


def test_formats_are_two_pages(world: World) -> None:
    world.metrics.queue_seen('a"\\\nb')
    text = world.get("/metrics")
    openmetrics = world.get("/metrics", Accept="application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    names = [{family.name for family in parse(reply.body.decode())} for parse, reply in (
        (parse_text, text), (parse_openmetrics, openmetrics))]  # fmt: skip
    assert {name for name in names[0] if name.startswith("taskqueue")} == {
        name for name in names[1] if name.startswith("taskqueue")
    }


def test_who_hangs_up_does_not_end_it_for_the_others(world: World) -> None:
    fill(world)
    slow_clock(world, between=lambda number: hang_up(first) if number == 0 else None)
    first, second = ask(world, 2)
    world.clock.advance(0)
    assert first.received == b""
    assert second.replies()[0].status == 200


def test_nobody_s_page_is_not_made_to_the_end(world: World) -> None:
    fill(world)
    slices = slow_clock(world, between=lambda number: hang_up(*clients) if number == 2 else None)
    clients = ask(world, 2)
    world.clock.advance(0)
    assert len(slices) == 3
    (again,) = ask(world)
    world.clock.advance(0)
    assert again.replies()[0].status == 200


def test_a_page_that_fails_fails_once_for_all_and_the_next_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch, logged_errors: object
) -> None:
    def broken() -> bool:
        raise ZeroDivisionError

    world.metrics.sources.is_ready = broken
    fill(world, 10)
    slow_clock(world)
    clients = ask(world, 3)
    world.clock.advance(0)
    assert [client.replies()[0].status for client in clients] == [500, 500, 500]
    assert len(logged_errors.flush(ZeroDivisionError)) == 3  # type: ignore[attr-defined]
    world.metrics.sources.is_ready = None
    again = ask(world)
    world.clock.advance(0)
    assert again[0].replies()[0].status == 200


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_without_the_ages_the_rest_is_there(world: World, how: str) -> None:
    """A node in trouble is when the numbers are wanted most: a disk that stands still holds no page up for long."""
    if how == "refused":
        world.queue.fail_next("oldest_pending_age_s", NotReady())
    else:
        world.queue.oldest_pending_age_s = Deferred  # type: ignore[method-assign]
    (client,) = ask(world)
    world.clock.advance(limits.METRICS_AGES_S)
    world.clock.advance(0)
    assert client.replies()[0].status == 200

"""Files are read again when they change; unfit ones change nothing, and are said once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tq_node import limits
from tq_node.facade import ReadyNote
from tq_node.node.rereading import Rereading
from tq_node.reread_files import RereadFiles


@pytest.fixture
def said() -> Iterator[list[str]]:
    events: list[str] = []

    @implementer(ILogObserver)
    def observer(event: LogEvent) -> None:
        if "event" in event:
            events.append(str(event["event"]))

    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


class Pair:
    """Two files that have to say the same."""

    def __init__(self, folder: Path) -> None:
        self.paths = folder / "left", folder / "right"
        self.write("1", "1")
        self.reads = 0
        self.files = RereadFiles("--pair", self.paths, self.read)

    def write(self, *texts: str) -> None:
        for path, text in zip(self.paths, texts, strict=False):
            new = path.with_suffix(".new")
            new.write_text(text)
            os.replace(new, path)

    def read(self) -> str:
        self.reads += 1
        left, right = (path.read_text() for path in self.paths)
        if left != right:
            raise ValueError(f"{left} is not\n{right}")
        return left


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_what_has_not_changed_is_not_read_again(pair: Pair, said: list[str]) -> None:
    for _ in range(3):
        pair.files.look()
    assert (pair.reads, pair.files.value, said) == (1, "1", [])


def test_a_change_counts_and_is_passed_on(pair: Pair, said: list[str]) -> None:
    passed: list[str] = []
    pair.files.on_change.append(passed.append)
    pair.write("2", "2")
    pair.files.look()
    assert (pair.files.value, passed, said) == ("2", ["2"], ["files_reread"])


def test_files_replaced_one_after_the_other_are_no_trouble(pair: Pair, said: list[str]) -> None:
    pair.write("2")
    pair.files.look()
    assert pair.files.value == "1"
    pair.write("2", "2")
    pair.files.look()
    assert (pair.files.value, pair.files.trouble, said) == ("2", None, ["files_reread"])


def test_unfit_files_keep_what_was_read_and_are_said_once(pair: Pair, said: list[str]) -> None:
    pair.write("2")
    for _ in range(4):
        pair.files.look()
    assert (pair.files.value, pair.files.trouble, said) == ("1", "2 is not 1", ["files_unusable"])
    pair.write("2", "2")
    pair.files.look()
    assert (pair.files.value, pair.files.trouble) == ("2", None)


def test_a_file_that_is_gone_keeps_what_was_read(pair: Pair) -> None:
    pair.paths[0].unlink()
    pair.files.look()
    pair.files.look()
    assert pair.files.value == "1"
    assert "No such file" in str(pair.files.trouble)


def test_the_target_of_a_link_is_watched(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    files = RereadFiles("--link", [link], link.read_text)
    (tmp_path / "next").symlink_to(tmp_path / "b")
    os.replace(tmp_path / "next", link)
    files.look()
    assert files.value == "b"


def test_a_change_of_the_mode_alone_is_one(pair: Pair) -> None:
    pair.paths[0].chmod(0o600)
    pair.files.look()
    assert pair.reads == 2


def test_they_are_looked_at_until_stopped_and_ready_says_what_is_wrong(pair: Pair) -> None:
    clock = Clock()
    standing = ReadyNote("insecure_http", "said at the start")
    rereading = Rereading([standing])
    rereading.add(pair.files)
    rereading.start(clock)
    pair.write("2")
    for _ in range(3):
        clock.advance(limits.REREAD_S)
    first, second = rereading.notes()
    assert first == standing
    assert (second.code, second.detail) == (
        "files_unusable",
        "--pair: the changed file is not used, the earlier one is: 2 is not 1",
    )
    pair.write("2", "2")
    clock.advance(limits.REREAD_S)
    assert rereading.notes() == (standing,)
    rereading.stop()
    assert not clock.getDelayedCalls()
    rereading.stop()


def test_changes_count_within_two_seconds() -> None:
    assert 2 * limits.REREAD_S < 2.0

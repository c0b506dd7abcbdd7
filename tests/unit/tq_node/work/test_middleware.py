"""Hooks of other packages around attempts, found by entry points, in both kinds of worker processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tq_node.work.conftest import Rig, asynchronous
from tq_node.facade import AttemptFailed, Completed
from tq_node.work import middleware
from tq_node.work.middleware import Middleware

LOOPS = "tests.unit.tq_node.work.loop_handlers"
HOOKS = "tests.unit.tq_node.work.hooks"


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, **hooks: str) -> None:
    """A distribution that offers these, as pip would have left it."""
    info = folder / "shop_hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-hooks\nVersion: 1.0\n")
    lines = [f"{name} = {HOOKS}:{what}" for name, what in hooks.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{middleware.GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))


def lines(rig: Rig, task_id: str) -> list[str]:
    return [
        line.line
        for claim, _, notes in rig.queue.finished
        if claim.task_id == task_id and notes
        for line in notes.lines
    ]


@asynchronous
async def test_they_run_around_each_attempt_in_both_kinds_of_processes(
    rigs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, shop="Hooks")
    for module, echo, fails in (
        ("tests.unit.tq_node.work.sample_handlers", "echo", "raise"),
        (LOOPS, "l_echo", "l_raise"),
    ):
        rig = rigs(module)
        claim, outcome = await rig.run(echo, 7)
        assert outcome == Completed(b"7")
        assert lines(rig, claim.task_id) == [f"before {echo}", f"after {echo}: 7"]
        claim, outcome = await rig.run(fails, "value")
        assert isinstance(outcome, AttemptFailed)
        assert lines(rig, claim.task_id)[0] == f"before {fails}"
        assert lines(rig, claim.task_id)[1].startswith("error True: ValueError(")


@asynchronous
async def test_one_that_raises_costs_the_attempt_nothing(
    rigs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, a="Broken", b="Hooks")
    rig = rigs(LOOPS)
    claim, outcome = await rig.run("l_echo", 7)
    assert outcome == Completed(b"7")
    said = lines(rig, claim.task_id)
    assert said[0] == "the middleware Broken.before failed:"
    assert "RuntimeError: it was to count attempts" in said
    assert said[-2:] == ["before l_echo", "after l_echo: 7"]


def test_one_that_can_not_be_imported_is_named() -> None:
    with pytest.raises(ModuleNotFoundError) as refused:
        Middleware(["no_such_module:Hooks"])
    assert refused.value.__notes__ == ["in the middleware no_such_module:Hooks"]


def test_after_and_error_come_in_the_reverse_order() -> None:
    called: list[str] = []

    class One:
        @staticmethod
        def before(context: object) -> None:
            called.append("before one")

        @staticmethod
        def after(context: object, result: object) -> None:
            called.append("after one")

    class Two:
        @staticmethod
        def before(context: object) -> None:
            called.append("before two")

        @staticmethod
        def after(context: object, result: object) -> None:
            called.append("after two")

    here = sys.modules[__name__]
    here.One, here.Two = One, Two  # type: ignore[attr-defined]  # found there by name
    both = Middleware([f"{__name__}:One", f"{__name__}:Two"])
    both.before(None)  # type: ignore[arg-type]
    both.after(None, 1)  # type: ignore[arg-type]
    assert called == ["before one", "before two", "after two", "after one"]

"""The process's deadline is kept by a thread, which runs before whoever set it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest

from tq_node.node import signals


@pytest.mark.parametrize("which", ["begun", "closed"])
def test_the_thread_runs_before_the_call_returns(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The system may start a thread late. One that starts while the interpreter ends aborts the process: "Couldn't create
    autoTSSkey mapping", exit by SIGABRT after an orderly stop."""
    runs = threading.Event()

    def start_late(run: Callable[[], None], arguments: tuple[()]) -> None:
        def late() -> None:
            time.sleep(0.2)
            runs.set()
            with suppress(SystemExit):
                run()

        threading.Thread(target=late).start()

    def end_thread(seconds: float) -> None:
        raise SystemExit  # the thread's, before it ends the process

    monkeypatch.setattr(signals, "start_new_thread", start_late)
    monkeypatch.setattr(signals, "time", SimpleNamespace(sleep=end_thread))
    ending = signals.Ending(5.0)
    if which == "begun":
        ending.begun(0)
    else:
        ending.closed(0, lambda: None)
    assert runs.is_set()

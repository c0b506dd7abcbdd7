"""The console in a real terminal, against three real nodes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster, whole_cluster
from tests.cluster.replicated import wait_settled
from tests.support.harness import PROJECT, clean_environment, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: no terminal to look at"),
]

WIDTH, HEIGHT = 100, 30
GREYED_S = 20.0
"""Ten times the goal, for the machine is shared."""
SETTLED_S = 30.0
FIRST_PAINT_S = 5.0
"""Of a whole process on a machine that the tests share; what is measured is printed."""


class Terminal:
    """A console in tmux: keys go in, text comes out."""

    def __init__(self, socket: Path, *arguments: str) -> None:
        self._socket = socket
        self._status = socket.with_suffix(".status")
        command = f"{sys.executable} -m tq_tui {' '.join(arguments)}; echo $? > {self._status}"
        self._tmux(
            "-u", "-f", "/dev/null", "new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "sh", "-c", command,
        )  # fmt: skip

    def _tmux(self, *arguments: str) -> str:
        environment = clean_environment(LC_ALL="C.UTF-8", TERM="xterm-256color", COLORTERM="truecolor")
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *arguments],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    def text(self) -> str:
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def wait(self, pattern: str, deadline_s: float = SETTLED_S) -> re.Match[str]:
        """Until the screen has it somewhere."""
        try:
            found = until(
                lambda: re.search(pattern, self.text()), deadline_s=deadline_s, what=f"{pattern!r} on the screen"
            )
        except AssertionError as why:
            raise AssertionError(f"{why}\n{self.text()}") from None
        assert found is not None
        return found

    def tab(self) -> None:
        """To the next field, and wait until the cursor is there: what is typed in one burst all goes where the first key does."""
        before = self._cursor()
        self.press("Tab")
        until(lambda: self._cursor() != before, what="the cursor in another line")

    def _cursor(self) -> str:
        return self._tmux("display-message", "-p", "#{cursor_y}")

    def exit_status(self) -> int:
        return int(until(lambda: self._status.read_text().strip(), what="the console's end"))

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """``Terminal(…)``, closed at the end."""
    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(tmp_path / f"tmux-{len(opened)}", *arguments))
        return opened[-1]

    try:
        yield open_one
    finally:
        for one in opened:
            one.close()


def addresses(cluster: Cluster) -> str:
    return "localhost:" + ",".join(str(port) for port in cluster.ports.values())


def once(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tq_tui", *arguments, addresses(cluster)]
    return subprocess.run(command, env=clean_environment(), cwd=PROJECT, capture_output=True, text=True, timeout=30)


def submit(console: Terminal, task_type: str, payload: str, *, after: str = "none") -> str:
    """By typing, as people do; gives the id that the console says. What it said of ``after`` may still be there."""
    console.press("n")
    console.wait("Submit a task")
    console.type(task_type)
    console.wait(rf"type +{task_type}")
    console.tab()
    console.type(payload)
    console.wait("✔ JSON object, 1 field")
    console.press("C-s")
    return console.wait(rf"(?!{after})(task-[0-9a-f-]{{36}})[\s▌]+Submitted").group(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Whole after the first test; the second one ends with it."""
    with whole_cluster(tmp_path_factory.mktemp("console")) as cluster:
        yield cluster


def test_a_day_of_an_operator(cluster: Cluster, terminal: Callable[..., Terminal]) -> None:
    began_s = time.monotonic()
    console = terminal(addresses(cluster))
    console.wait("1 Overview", FIRST_PAINT_S)
    print(f"\nfirst paint {1000 * (time.monotonic() - began_s):.0f} ms after tmux was started")
    console.wait(r"HEALTHY +3/3 nodes · leader node-\d")
    print(f"three nodes after {1000 * (time.monotonic() - began_s):.0f} ms")

    # Submit one by typing; see it run and complete.
    image = submit(console, "image", '{"url":"a.png"}')
    console.press("3")
    console.wait("▶ processing  image")
    console.wait("✔ completed  image")
    console.wait("Image processed")

    # Kill one that runs.
    report = submit(console, "report", '{"year":2026}', after=image)
    console.press("3")
    console.wait("▶ processing  report")
    console.press("K")
    console.wait("Kill task-.*")
    console.wait("1 running handler is stopped")
    console.press("y")
    console.wait("⊘ cancelled  report")

    # kill -9 the leader: greyed within two seconds, and another one leads.
    console.press("1")
    leader = console.wait(r"leader (node-\d)").group(1)
    cluster[leader].kill9()
    killed_s = time.monotonic()
    console.wait(rf"─ {leader} ─+ ✘ down ─", 10)
    greyed = time.monotonic() - killed_s
    console.wait(rf"leader (?!{leader})node-\d")
    moved = time.monotonic() - killed_s
    console.wait("DEGRADED")
    print(f"kill -9 of {leader}: greyed after {greyed:.2f} s, another leader after {moved:.2f} s")
    assert greyed < GREYED_S
    until(lambda: once(cluster, "--once").returncode == 1, deadline_s=30, what="degraded, not without a quorum")

    # Orders go to those that live.
    submit(console, "email", '{"to":"a@b.c"}', after=report)
    console.press("3")
    console.wait("✔ completed  email")
    console.press("1")

    # It comes back by itself.
    cluster.start(leader)
    started_s = time.monotonic()
    console.wait(rf"─ {leader} ─+ ● active ─")
    print(f"back on the screen {time.monotonic() - started_s:.2f} s after its start")
    console.wait(r"HEALTHY +3/3 nodes", 60)
    console.press("q")
    assert console.exit_status() == 0
    cluster.wait_whole()


@pytest.mark.parametrize("comes_back", [False, pytest.param(True, marks=pytest.mark.long)])
def test_no_quorum_is_said_and_scripts_can_tell(
    cluster: Cluster, terminal: Callable[..., Terminal], comes_back: bool
) -> None:
    wait_settled(cluster)  # copies that are on their way are no full health
    healthy = once(cluster, "--once")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert "HEALTHY" in healthy.stdout
    told = json.loads(once(cluster, "--json").stdout)
    assert (told["health"], told["exit"], len(told["nodes"])) == ("healthy", 0, 3)
    console = terminal(addresses(cluster), "--readonly")
    console.wait("HEALTHY")
    console.wait("read-only")
    for name in ("node-2", "node-3"):
        cluster[name].kill9()
    console.wait("NO QUORUM")
    console.wait("1 of 3 voters answers, 2 must")
    ended = once(cluster, "--once")
    assert ended.returncode == 2
    assert "NO QUORUM" in ended.stdout
    cluster["node-1"].kill9()
    console.wait("UNREACHABLE")
    assert once(cluster, "--once").returncode == 2
    if comes_back:
        cluster.start()
        console.wait("HEALTHY", 60)
    console.press("q")
    assert console.exit_status() == 0
    cluster.stop()

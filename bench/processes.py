"""Scratch directories and child processes, so that nothing of either is left behind, also after Ctrl-C or a crash."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
PEER_OFFSET = 1_000
PORTS = (12_000, 30_000)
STOP_S = 40.0
CALL_S = 240.0
_LOG_LINES_SHOWN = 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_given_out: set[int] = set()


class Stopped(Exception):
    """Ctrl-C or SIGTERM."""


class Failed(Exception):
    """A measurement could not be made, or what it left does not add up. The message is for a person."""


def build_directory() -> Path:
    """Where everything of the bench lies: on the same disk as the checkout, out of version control, gone with ``make clean``."""
    return ROOT / "build" / "bench"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new directory, gone at the end; those that killed runs have left go too."""
    parent = build_directory()
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("run-*"):
        if not _alive(int(left.name.removeprefix("run-"))):
            shutil.rmtree(left, ignore_errors=True)
    directory = parent / f"run-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child: ours without what would configure a node, with this checkout to import from first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
    for name in ("NODE_ID", "HTTP_ADDR", "JOIN_ADDR"):
        kept.pop(name, None)
    return {**kept, "PYTHONPATH": python_path(ROOT), **(extra or {})}


def python_path(tree: Path) -> str:
    """Where a checkout's processes import from: there first, then where we do."""
    return os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def spawn(
    command: Sequence[str],
    *,
    directory: Path,
    log: Path,
    output: int | None = None,
    given: int | None = None,
    extra: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A child in a session of its own (a Ctrl-C at the terminal reaches only us) that the kernel kills when we die."""
    with log.open("ab") as sink:
        target: int | IO[bytes] = sink if output is None else output
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment(extra),
            stdin=subprocess.DEVNULL if given is None else given,
            stdout=target,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 -- no thread is ever started here
        )


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    directory: Path,
    log: Path,
    wait_s: float = STOP_S,
    extra: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is stopped at the end of the block.

    :param extra: more of an environment for it.
    """
    process = spawn(command, directory=directory, log=log, extra=extra)
    try:
        yield process
    finally:
        stop(process, wait_s=wait_s)


def stop(process: subprocess.Popen[bytes], *, wait_s: float = STOP_S) -> int:
    """Send SIGTERM to the child's group, then SIGKILL where that does not end it; returns the exit code."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    return wait_ended(process, wait_s)


def wait_ended(process: subprocess.Popen[bytes], wait_s: float = STOP_S) -> int:
    """The exit code of one that was asked to stop; its whole group is killed where it does not in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)
    kill(process)
    return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole group with SIGKILL."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def call(command: Sequence[str], spec: object, *, directory: Path, log: Path, wait_s: float = CALL_S) -> Any:
    """Run a helper that reads ``spec`` as JSON and answers in JSON; what it answered.

    :raises Failed: it ended with an error, or took too long.
    """
    process = spawn(command, directory=directory, log=log, output=subprocess.PIPE, given=subprocess.PIPE)
    try:
        answer, _ = process.communicate(json.dumps(spec).encode(), wait_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"{_name(command)} took more than {wait_s:g} s") from None
    finally:
        kill(process)
    if process.returncode != 0:
        raise Failed(f"{_name(command)} ended with code {process.returncode}; it said:\n{tail(log)}")
    try:
        return json.loads(answer)
    except ValueError:
        raise Failed(f"{_name(command)} did not answer in JSON: {answer[:200]!r}") from None


class Conversation:
    """A helper process that takes and answers lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], command: Sequence[str], log: Path) -> None:
        self._process = process
        self._name = _name(command)
        self._log = log
        self._heard = b""

    def say(self, what: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: what it said last is read next
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()

    def hear(self, wait_s: float = CALL_S) -> Any:
        """The helper's next line. :raises Failed: none came in time, or no JSON."""
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        end = time.monotonic() + wait_s
        while b"\n" not in self._heard:
            if not select.select([number], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Failed(f"{self._name} said nothing for {wait_s:g} s")
            data = os.read(number, 1 << 20)
            if not data:
                raise Failed(f"{self._name} ended with code {self._process.wait()}; it said:\n{tail(self._log)}")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise Failed(f"{self._name} did not answer in JSON: {line[:200]!r}") from None


@contextlib.contextmanager
def conversation(command: Sequence[str], spec: object, *, directory: Path, log: Path) -> Iterator[Conversation]:
    """Start a helper with ``spec``; it is killed at the end of the block."""
    process = spawn(command, directory=directory, log=log, output=subprocess.PIPE, given=subprocess.PIPE)
    try:
        talk = Conversation(process, command, log)
        talk.say(spec)
        yield talk
    finally:
        kill(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _name(command: Sequence[str]) -> str:
    return command[command.index("-m") + 1] if "-m" in command else Path(command[0]).name


def module(name: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", name]


def tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES_SHOWN:])


def free_port() -> int:
    """A port that nobody has now, never given out before, with the one 1,000 above free too: that is where peers connect.

    Below what kernels give to outgoing connections, so that no client takes it before its server is up.
    """
    while True:
        port = random.randrange(*PORTS)
        if {port, port + PEER_OFFSET} & _given_out:
            continue
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind((HOST, port))
            second.bind((HOST, port + PEER_OFFSET))
            _given_out.update((port, port + PEER_OFFSET))
            return port


def fdatasync_us(directory: Path, times: int) -> float:
    """Median time of an fdatasync after 4 KiB were appended, in microseconds: the yardstick of everything here."""
    path = directory / "probe"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            begun = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter_ns() - begun)
    path.unlink()
    return sorted(taken)[len(taken) // 2] / 1000


def bytes_below(directory: Path) -> int:
    """What the files below a directory take on disk, in bytes."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                total += path.stat().st_blocks * 512
    return total

"""What the bench asks of another task queue."""

from __future__ import annotations

import abc
import importlib.metadata
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import Failed, build_directory

_INSTALL_S = 120
_START_S = 30.0
_POLL_S = 0.02


class Unavailable(Exception):
    """This peer can't be had here; why, for a person."""


@dataclass(frozen=True)
class Rate:
    """Tasks a second, and what else is worth keeping."""

    rate: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drain:
    """A way to run this peer's tasks. ``is_slow``: give it few. ``is_fast``: give it as many as ours gets.

    ``beside``: with False it stands beside our process handlers, with True beside our async ones.
    """

    system: str
    worker: str
    is_slow: bool = False
    is_fast: bool = False
    beside: tuple[bool, ...] = (False,)


class Peer(abc.ABC):
    """One other queue. Each method starts from nothing, in the directory given to it."""

    name: str
    requirements: tuple[str, ...]
    """What pip installs."""
    distribution: str
    about: str
    """How it is set up, one line for the report."""
    submit_clients: tuple[int, ...] = (1, 32, 128)
    drains: tuple[Drain, ...]

    def __init__(self) -> None:
        self.python = sys.executable
        self.version = ""

    def prepare(self) -> None:
        """Use what is installed beside us, else an environment of its own, made once and kept.

        :raises Unavailable: neither is to be had.
        """
        try:
            self.version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            self.python, self.version = environment(self.distribution, self.requirements)

    @abc.abstractmethod
    def submits(self, fresh: Callable[[], Path], seconds: float) -> list[tuple[int, Rate]]:
        """Submits one by one; for each number of clients.

        :param fresh: makes a new directory, and looks at the disk.
        """

    def batches(self, fresh: Callable[[], Path], sizes: Sequence[int], seconds: float) -> list[tuple[int, Rate]]:
        """Submits in batches, for each size; nothing where it has none."""
        return []

    @abc.abstractmethod
    def drain(self, directory: Path, drain: Drain, count: int, seconds: float) -> Rate:
        """Tasks that do nothing, run with their results recorded; all of them, or for ``seconds``."""

    @abc.abstractmethod
    def pick_up(self, directory: Path, count: int, gap_s: float) -> list[float]:
        """Milliseconds from a submit to the first line of the task, for each of ``count``."""

    def syncs(self, directory: Path, count: int) -> tuple[float, float] | None:
        """Syncs per 1,000 tasks: of submits over one client, of a drain; None: they are not counted."""
        return None


def environment(distribution: str, requirements: tuple[str, ...]) -> tuple[str, str]:
    """(its Python, the version in it) of an environment with nothing but this."""
    directory = build_directory() / f"peer-{distribution}"
    python = str(directory / "bin" / "python")
    ask = [python, "-c", f"from importlib.metadata import version; print(version({distribution!r}))"]
    made_of = directory / "made-of.txt"
    wanted = " ".join(requirements)
    try:
        if not made_of.exists() or made_of.read_text() != wanted:
            shutil.rmtree(directory, ignore_errors=True)
            venv.create(directory, with_pip=False, symlinks=True)
            pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
            subprocess.run(
                [*pip, "install", "--quiet", *requirements],
                check=True, capture_output=True, timeout=_INSTALL_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            made_of.write_text(wanted)
        return python, subprocess.run(ask, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as why:
        shutil.rmtree(directory, ignore_errors=True)
        said = (getattr(why, "stderr", None) or b"").strip()
        lines = (said if isinstance(said, str) else said.decode("utf-8", "replace")).splitlines()
        raise Unavailable(f"{wanted} can't be installed: {lines[-1] if lines else type(why).__name__}") from None
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def wait_done(done: Callable[[], int], count: int, seconds: float) -> float:
    """Tasks a second from the first look that shows some done until all are, or for ``seconds``.

    The start of the workers does not count.

    :raises Failed: none is done in time.
    """
    end = time.perf_counter() + _START_S
    first: tuple[float, int] | None = None
    while (now_done := done()) < count:
        now = time.perf_counter()
        if now_done and first is None:
            first = now, now_done
            end = now + seconds
        if now > end:
            break
        time.sleep(_POLL_S)  # polls how much is done
    if first is None:
        raise Failed(f"{now_done} of {count} tasks were done in one look")
    return (now_done - first[1]) / (time.perf_counter() - first[0])

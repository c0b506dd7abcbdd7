"""Clusters whose nodes run the code of different releases, and what is kept of earlier ones in ``releases/``."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import PEER_OFFSET, Cluster
from tests.cluster.replicated import NAMES
from tests.support.harness import PROJECT, Nodes
from tests.support.proxy import redirection
from tests.upgrade.frozen import Frozen
from tests.upgrade.taps import Said, Taps

HERE = Path(__file__).parent
RELEASES = HERE / "releases"
HANDLERS = "recorded_handlers"
TEXT = "text "
BYTES = "base64 "
UNPACKED: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11 knows filters from 3.11.4 on, and Debian's is older. What is unpacked is ours."""


# --- clusters ---
class VersionedCluster(Cluster):
    """Three nodes with the handlers of ``handlers.py``.

    :param trees: of a node's name, the checkout whose code it runs; today's where none is named.
    :param tapped: peers talk through ``taps``.
    :param recorded: of each node's name, the peer port that the directories know it by; whoever dials it reaches today's.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        home: Path | None = None,
        options: Sequence[str] = (),
        trees: Mapping[str, Path] | None = None,
        tapped: bool = False,
        recorded: Mapping[str, int] | None = None,
        ports: Mapping[str, int] | None = None,
        held_s: float = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            nodes,
            NAMES,
            home=home,
            options=("--handlers", HANDLERS, *options),
            environment={"TEST_HELD_S": f"{held_s:g}", **(environment or {})},
        )
        if ports is not None:
            self.ports = dict(ports)
        self.trees = dict(trees or {})
        shutil.copy(HERE / "handlers.py", self.home / f"{HANDLERS}.py")
        self._recorded = dict(recorded or {})
        self._site = nodes.directory / "redirection"
        self._redirect = redirection(self._site)
        self.taps = Taps({name: self.peer_port(name) for name in self.ports}) if tapped else None

    def peer_port(self, name: str) -> int:
        return self.ports[name] + PEER_OFFSET

    def environment(self, name: str) -> dict[str, str]:
        environment = super().environment(name)
        redirects: dict[int, int] = {}
        for other in self.ports:
            if other != name:
                dialled = self.taps.port(name, other) if self.taps is not None else self.peer_port(other)
                redirects[self.peer_port(other)] = dialled
                if other in self._recorded:
                    redirects[self._recorded[other]] = dialled
        environment |= self._redirect(redirects)
        return environment | {"PYTHONPATH": f"{self._site}:{self.home}:{self.trees.get(name, PROJECT)}"}

    def close(self) -> None:
        super().close()
        if self.taps is not None:
            self.taps.close()


def checkout(commit: str, directory: Path) -> Path:
    """The files of a commit. Skips the test where there is none: no git, no repository, or a shallow one."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git, so no checkout of the last release")
    made = subprocess.run([git, "-C", PROJECT, "archive", commit], capture_output=True, check=False, timeout=60)
    if made.returncode != 0:
        pytest.skip(f"no checkout of {commit}: {made.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(directory, **UNPACKED)
    return directory


# --- what was recorded ---
class Recorded:
    """One folder of ``releases/``."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.description: dict[str, Any] = json.loads((folder / "wire.json").read_text())

    def __repr__(self) -> str:
        return self.name

    def frozen(self) -> Frozen:
        return _frozen(self)

    def unpack(self, which: str, home: Path) -> Path:
        """The nodes' directories of one recorded cluster, as ``home/data/NAME``; returns ``home``."""
        with tarfile.open(self._folder / "directories.tar.xz") as archive:
            for member in archive.getmembers():
                if member.name.startswith(f"{which}/"):
                    archive.extract(member, home.parent, **UNPACKED)
        (home.parent / which).rename(home)
        return home

    def transcript(self) -> list[Said]:
        lines = (self._folder / "transcript.jsonl").read_text().splitlines()
        return [said_in(line) for line in lines]


@cache
def _frozen(recorded: Recorded) -> Frozen:
    return Frozen(recorded.description)


def every_recorded() -> list[Recorded]:
    """Oldest first."""
    return [Recorded(folder) for folder in sorted(RELEASES.iterdir()) if folder.is_dir()]


def last_recorded() -> Recorded:
    """N - 1: whose wire today's must understand, and be understood by."""
    return every_recorded()[-1]


def line_of(said: Said) -> str:
    """A box in the transcript: printable values as they are, others in base64."""

    def shown(value: bytes) -> str:
        text = value.decode("latin-1")
        return TEXT + text if text.isascii() and text.isprintable() else BYTES + base64.b64encode(value).decode()

    return json.dumps(said._asdict() | {"box": {key: shown(value) for key, value in said.box.items()}})


def said_in(line: str) -> Said:
    """What ``line_of`` wrote."""
    fields = json.loads(line)
    fields["box"] = {
        key: value[len(TEXT) :].encode() if value.startswith(TEXT) else base64.b64decode(value[len(BYTES) :])
        for key, value in fields["box"].items()
    }
    return Said(**fields)

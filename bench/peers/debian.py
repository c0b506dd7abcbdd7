"""Programs from Debian's packages, unpacked below ``build/bench``: nothing is installed, no service started, no root needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.peers.base import Unavailable
from bench.processes import build_directory

_DOWNLOAD_S = 180


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The directory under which these are unpacked, kept from run to run.

    :param packages: all that is needed beyond what any Debian has; their own dependencies are not looked at.
    :raises Unavailable: they can't be had.
    """
    root = build_directory() / f"peer-{name}"
    done = root / "unpacked"
    if done.exists():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("neither installed nor to be had from Debian: there is no apt-get")
    shutil.rmtree(root, ignore_errors=True)
    downloads = root / "downloads"
    downloads.mkdir(parents=True)
    try:
        try:
            _run(["apt-get", "download", *packages], downloads)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:
                raise
            _run(["apt-get", "update", "-qq"], downloads)  # a new machine has no lists yet
            _run(["apt-get", "download", *packages], downloads)
        for package in sorted(downloads.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(root)], downloads)
        shutil.rmtree(downloads)
        done.touch()
    except (OSError, subprocess.SubprocessError) as why:
        shutil.rmtree(root, ignore_errors=True)
        said = (getattr(why, "stderr", None) or b"").decode("utf-8", "replace").strip().splitlines()
        raise Unavailable(f"its packages can't be had: {said[-1] if said else type(why).__name__}") from None
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return root


def _run(command: list[str], directory: Path) -> None:
    subprocess.run(
        command, cwd=directory, check=True, capture_output=True, timeout=_DOWNLOAD_S, stdin=subprocess.DEVNULL
    )

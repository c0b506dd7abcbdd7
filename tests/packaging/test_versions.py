"""Which versions of others' packages: those that were tested (``constraints.txt``), and the lowest allowed (``setup.cfg``)."""

from __future__ import annotations

import configparser
import re
import subprocess
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.lowest import SETUP, lowest
from tests.support.harness import PROJECT

PINS = PROJECT / "constraints.txt"
HOLES_ENDED = {
    "aiohttp": "3.14.3",  # CVE-2026-69244: a read out of bounds, by answers that are malformed
    "cryptography": "50.0.0",  # CVE-2026-69247, -69249
    "pillow": "12.3.0",  # several writes out of bounds
    "pyOpenSSL": "26.1.0",  # CVE-2026-40475
    "twisted": "26.4.0",  # CVE-2026-42304
    "werkzeug": "3.1.6",  # CVE-2026-27199
}
"""The first release without the holes that were known when the bound was set, in December 2026."""


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in PINS.read_text().splitlines():
        if not line.startswith("#"):
            name, pin = line.split("==")
            found[canonicalize_name(name)] = Version(pin)
    return found


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


def requirements() -> list[Requirement]:
    setup = parsed(SETUP.read_text())
    every = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    found = [Requirement(line) for listed in every for line in listed.strip().splitlines()]
    return [one for one in found if one.name != setup["metadata"]["name"]]


def test_every_package_that_we_name_was_tested_with_a_version_that_we_allow() -> None:
    pinned = pins()
    for one in requirements():
        assert pinned[canonicalize_name(one.name)] in one.specifier, one
    assert len(pinned) > 60, "what those need, too"
    assert not {"tq-node", "taskqueue"} & pinned.keys(), "ourselves"
    assert {"setuptools", "wheel"} <= pinned.keys(), "what builds the package"


def test_nothing_is_named_but_packages_and_versions() -> None:
    lines = [line for line in PINS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines)


def test_what_those_need_is_pinned_too() -> None:
    pinned = pins()
    for name, pin in pinned.items():
        try:
            if Version(metadata.version(name)) != pin:
                continue  # in the environment of another try, of the lowest versions or the newest
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for one in map(Requirement, metadata.requires(name) or ()):
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert canonicalize_name(one.name) in pinned, f"{one}, for {name}"


@pytest.mark.parametrize("target", [".run-stamp", ".dev-stamp"])
def test_run_and_test_install_those(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", f".venv/{target}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if "pip" in line and "install" in line]
    assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in line


def test_the_image_installs_those() -> None:
    assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in (PROJECT / "Dockerfile").read_text()


def test_no_bound_lets_a_known_hole_in() -> None:
    bounds = dict(line.split("==") for line in lowest(SETUP.read_text()))
    for name, ended in HOLES_ENDED.items():
        assert Version(bounds[name]) >= Version(ended), name


def test_lowest_names_each_requirement_of_node_and_examples_once() -> None:
    lines = list(lowest(SETUP.read_text()))
    assert "twisted==26.4.0" in lines
    assert len(lines) == len({line.partition("==")[0] for line in lines})
    assert {Requirement(line).name for line in lines} <= {one.name for one in requirements()}


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="no lower bound"):
        list(lowest(SETUP.read_text().replace("mmh3 >= 5.0", "mmh3")))


def test_the_name_is_not_somebody_else_s() -> None:
    """``taskqueue`` is taken where packages are published; ``tq-node`` is free. Extras that refer to us do so by that name."""
    text = SETUP.read_text()
    assert parsed(text)["metadata"]["name"] == "tq-node"
    assert "taskqueue[" not in text
    pages = [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]
    pages = [page for page in pages if page.parent.name != "decisions"]  # they say what was, too
    assert [page.name for page in pages if re.search(r"pip install '?taskqueue", page.read_text())] == []

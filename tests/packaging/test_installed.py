"""However it is installed, ``twistd`` knows the command: from a wheel, from an sdist, and editable."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.harness import PROJECT, clean_environment

pytestmark = pytest.mark.slow
DEADLINE_S = 120
TWISTD = ["-c", "from twisted.scripts.twistd import run; run()"]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "data", "build", "dist", "*.egg-info", "__pycache__", "dropin.cache", "tests", "bench"
)


def run(*command: str | Path, cwd: Path) -> str:
    environment = clean_environment(PYTHONDONTWRITEBYTECODE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    del environment["PYTHONPATH"]
    done = subprocess.run(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the project."""
    copy = Path(shutil.copytree(PROJECT, tmp_path_factory.mktemp("source") / "taskqueue", ignore=NOT_SOURCE))
    shutil.copyfile(PROJECT / ".dockerignore", copy / ".dockerignore")
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source, cwd=out)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (made,) = out.iterdir()
    return made


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment that can import our dependencies, but not us."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True, with_pip=False)
    made = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    # A .pth file adds the folder itself and does not read the .pth files in it: an editable install there stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    assert "None" in run(made, "-c", "import importlib.util as u; print(u.find_spec('tq_node'))", cwd=tmp_path)
    return made


def assert_twistd_knows_it(python: Path, cwd: Path) -> None:
    listed = run(python, *TWISTD, "--help", cwd=cwd)
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == ["taskqueue"]]
    assert "task queue" in line
    assert run(python, *TWISTD, "taskqueue", "--version", cwd=cwd).startswith("taskqueue 0.")
    assert "--node-id" in run(python, *TWISTD, "taskqueue", "--help", cwd=cwd)
    assert [path.name for path in cwd.iterdir()] == ["environment"]


def install(python: Path, cwd: Path, *what: str | Path) -> None:
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    run(*pip, *what, cwd=cwd)


def test_from_a_wheel(wheel: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, wheel)
    assert_twistd_knows_it(python, tmp_path)


@pytest.mark.long
def test_from_an_sdist(sdist: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, sdist)
    assert_twistd_knows_it(python, tmp_path)


def test_the_sdist_holds_all_that_an_image_and_units_are_made_of(sdist: Path, source: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Dockerfile", ".dockerignore", "constraints.txt", "CHANGELOG.md", "Makefile"} <= held
    deploy = {path.relative_to(source).as_posix() for path in (source / "deploy").rglob("*") if path.is_file()}
    assert deploy <= held
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (source / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} <= held


@pytest.mark.long
def test_editable(source: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, "--config-settings", "editable_mode=compat", "--editable", source)
    assert_twistd_knows_it(python, tmp_path)


def test_the_wheel_holds_what_the_node_needs_and_nothing_else(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(source).as_posix()
        for folder in ("tq_node", "tq_tui")
        for path in (source / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".sql", ".typed")
    }
    assert held == ours | {"twisted/plugins/taskqueue_plugin.py"}


def test_nothing_of_ours_makes_a_package_of_twisted() -> None:
    assert list((PROJECT / "twisted").rglob("__init__.py")) == []

"""Builds the distribution ``tq-node-worker`` from the tree that this folder lies in (PEP 517).

It holds the packages of ``ROOTS`` and whatever of ``tq_node`` these import, looked up in their
source: nothing has to be listed twice, and nothing that a node alone needs can slip in. What it
depends on are the lines of ``setup.cfg`` for ``REQUIRED``. An sdist holds the gathered tree, and
builds without this module.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
NAME = "tq-node-worker"
DESCRIPTION = "Client and workers of taskqueue, for machines that run no node."
ROOTS = ("client", "conformance", "remote_worker", "testing", "work", "__init__", "pytest_plugin")
"""Of ``tq_node``; each package whole, as some modules are run by their names."""
REQUIRED = ("msgspec", "twisted", "zope.interface")
SCRIPTS = ("tq-worker", "tq-worker-conformance")
BUILD = """[build-system]
requires = ["setuptools>=64", "wheel"]
build-backend = "setuptools.build_meta"
"""
Config = Mapping[str, Any] | None


# --- PEP 517 ---
def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    return []


def get_requires_for_build_sdist(config_settings: Config = None) -> list[str]:
    return []


def build_wheel(wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    with _gathered(wheel_directory) as out:
        return build_meta.build_wheel(out, dict(config_settings or {}))


def build_sdist(sdist_directory: str, config_settings: Config = None) -> str:
    with _gathered(sdist_directory) as out:
        return build_meta.build_sdist(out, dict(config_settings or {}))


# --- the tree ---
@contextmanager
def _gathered(out: str) -> Iterator[str]:
    """Within a folder that holds the distribution's own tree; gives ``out`` as seen from there."""
    goal, back = Path(out).resolve(), Path.cwd()
    goal.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder))
        os.chdir(folder)
        try:
            yield str(goal)
        finally:
            os.chdir(back)


def gather(folder: Path) -> None:
    """Write the distribution's source tree."""
    for path in modules():
        copy = folder / path.relative_to(TREE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.copyfile(TREE / "tq_node/py.typed", folder / "tq_node/py.typed")
    for name in ("LICENSE", "README.md"):
        shutil.copyfile(TREE / name, folder / name)
    (folder / "pyproject.toml").write_text(BUILD)
    with (folder / "setup.cfg").open("w") as out:
        settings().write(out)


def settings() -> configparser.ConfigParser:
    """Those of the whole, with less in them."""
    whole = configparser.ConfigParser()
    whole.read(TREE / "setup.cfg")
    found = configparser.ConfigParser()
    found["metadata"] = dict(whole["metadata"]) | {"name": NAME, "description": DESCRIPTION}
    options = {name: whole["options"][name] for name in ("python_requires", "zip_safe")}
    found["options"] = options | {
        "packages": "find_namespace:",
        "install_requires": _lines(whole, "options", "install_requires", REQUIRED),
    }
    found["options.packages.find"] = {"include": "\ntq_node*"}
    found["options.package_data"] = {"tq_node": "py.typed"}
    points = whole["options.entry_points"]
    found["options.entry_points"] = dict(points) | {
        "console_scripts": _lines(whole, "options.entry_points", "console_scripts", SCRIPTS)
    }
    return found


def _lines(whole: configparser.ConfigParser, section: str, name: str, wanted: tuple[str, ...]) -> str:
    """The lines of a setting that begin with one of these names, without extras."""
    lines = [re.sub(r"\[.*?\]", "", line) for line in whole[section][name].strip().splitlines()]
    by_name = {line.split()[0]: line for line in lines}
    return "\n" + "\n".join(by_name[one] for one in wanted)


def modules() -> list[Path]:
    """The files of ``ROOTS``, and all of ``tq_node`` that they import."""
    package = TREE / "tq_node"
    waiting = [
        path
        for name in ROOTS
        for path in (
            [package / f"{name}.py"] if (package / f"{name}.py").exists() else sorted((package / name).rglob("*.py"))
        )
    ]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [one for name in _imports(path) for one in _files(name)]
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str) -> Iterator[Path]:
    """The modules that are run when this one of ours is imported; none: it is no module of ours."""
    parts = name.split(".")
    if parts[0] == "tq_node":
        for count in range(1, len(parts) + 1):
            path = TREE.joinpath(*parts[:count])
            yield from (one for one in (path / "__init__.py", path.with_suffix(".py")) if one.exists())

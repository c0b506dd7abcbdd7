"""The unit of ``tq-worker`` and its service in the compose file, against what the program takes."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.deployed import environment_file
from tests.packaging.test_deploy_container import NAMES, read_compose
from tests.packaging.test_deploy_systemd import EXPOSURE_MAX, SERVICE, UNITS, seconds, settings_of, tool
from tests.support.harness import PROJECT, TWISTD
from tq_node import limits
from tq_node.client.engine import Settings
from tq_node.remote_worker.options import read_options

UNIT = "taskqueue-worker@.service"
EXAMPLE = "worker.env.example"
INSTALLED = "/opt/taskqueue/venv/bin/tq-worker"
PAGE = PROJECT / "docs/howto/run-workers-elsewhere.md"


@pytest.mark.parametrize("verb", [["verify", "--man=no"], ["security", "--offline=yes", "--no-pager"]])
def test_the_unit_is_understood_and_its_sandbox_tight(tmp_path: Path, verb: list[str]) -> None:
    unit = tmp_path / UNIT
    unit.write_text((UNITS / UNIT).read_text().replace(INSTALLED, TWISTD))  # systemd looks whether the program is there
    done = subprocess.run(
        [tool("systemd-analyze"), *verb, unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert (verb[0] == "verify") is (found is None)
    assert found is None or float(found[1]) < EXPOSURE_MAX


def test_times_codes_and_sandbox_are_those_of_the_worker() -> None:
    unit, node = settings_of(UNIT), settings_of(SERVICE)
    assert unit["ExecStart"] == [f"{INSTALLED} --name %i"]
    assert seconds(unit["TimeoutStopSec"][0]) >= limits.STOP_TIMEOUT_S + limits.STOP_MARGIN_S
    assert unit["RestartPreventExitStatus"] == ["1"]
    assert unit["EnvironmentFile"] == ["/etc/taskqueue/worker-%i.env"]
    same = [
        name for name in node if re.match(r"Protect|Private|Restrict[AFNRS]|SystemCall|Capability|NoNew|Lock", name)
    ]
    assert len(same) > 15
    for name in same:
        assert unit.get(name) == node[name], name


def told(environment: dict[str, str], tmp_path: Path) -> Any:
    return read_options([], environment | {"HOME": str(tmp_path)})


def test_the_example_of_an_environment_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (UNITS / EXAMPLE).read_text()
    assert told(environment_file(text), tmp_path).handlers == ("handlers",)
    (tmp_path / "worker.token").write_text("tq_" + "a" * 43)
    all_of_it = re.sub(r"^#(TQ_)", r"\1", text, flags=re.MULTILINE)
    all_of_it = all_of_it.replace("/etc/taskqueue/worker.token", str(tmp_path / "worker.token"))
    environment = environment_file(all_of_it)
    del environment["TQ_CA"]  # its file would have to hold a certificate
    options = told(environment, tmp_path)
    assert isinstance(options.settings, Settings)
    assert options.queues == ("mail", "default")
    assert options.status_port == ("127.0.0.1", 9090)
    assert (options.lease_s, options.stop_timeout_s, options.concurrency) == (15, 25, 16)
    assert options.memory_bytes == 1 << 30
    # Each of its lines is an option: as another value it is refused, or makes another.
    for name in environment:
        assert f"`{name}`" in (PROJECT / "docs/reference/tq-worker.md").read_text(), name


def test_the_compose_service_runs_it(tmp_path: Path) -> None:
    services = read_compose()["services"]
    worker = services["worker"]
    scripts = configparser.ConfigParser()
    scripts.read(PROJECT / "setup.cfg")
    assert worker["entrypoint"][0] in scripts["options.entry_points"]["console_scripts"]
    said = worker["environment"]
    assert [place.partition(":")[0] for place in said["TQ_URL"].split(",")] == list(NAMES)
    assert set(worker["networks"]) == set(services["node-1"]["networks"])
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in said.items()}
    options = told(given, tmp_path)
    assert options.status_port == ("127.0.0.1", 9090)
    assert "127.0.0.1:9090/livez" in worker["healthcheck"]["test"][-1]
    assert int(worker["stop_grace_period"].removesuffix("s")) >= options.stop_timeout_s + limits.STOP_MARGIN_S
    assert worker["read_only"]
    assert worker["cap_drop"] == ["ALL"]


def test_the_page_has_all_of_it() -> None:
    page = PAGE.read_text()
    for name in (UNIT, EXAMPLE, "deploy/worker", "--profile worker", str(Path(INSTALLED).parents[1])):
        assert name in page, name

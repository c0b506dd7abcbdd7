"""The command line of ``twistd taskqueue``: parsing, one-line refusals, no pid file left behind."""

from __future__ import annotations

import difflib
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from twisted import copyright as twisted_copyright
from twisted.logger import Logger
from twisted.python import usage

from tq_node import distributions
from tq_node.cli.config import BadOption, NodeSettings, load
from tq_node.cli.option_table import OPTIONS, OptionRow

_log = Logger(namespace="taskqueue.node")
_PID_FILE_OF_TWISTD = "twistd.pid"
_STATUS_BYTES_MAX = 100
"""Bytes that twistd reads from the pipe on which a daemon says whether it has started."""


def say(line: str) -> None:
    """Print a line for the operator, past twistd, which redirects ``sys.stderr`` to its log."""
    if sys.__stderr__ is not None:
        print("taskqueue:", " ".join(line.split()), file=sys.__stderr__, flush=True)


def refuse(line: str) -> NoReturn:
    """Print on one line why the node does not start, and exit with code 1."""
    say(line)
    raise SystemExit(1)


class Options(usage.Options):
    """``parseOptions`` fills ``settings``. Whatever is wrong ends the process by ``refuse``."""

    settings: NodeSettings

    def __init__(self) -> None:
        self._command_line: dict[str, list[str]] = {}
        super().__init__()

    def parseOptions(self, options: list[str] | None = None) -> None:
        distributions.refuse_both("taskqueue")
        arguments = list(sys.argv[1:] if options is None else options)
        try:
            self._refuse_abbreviated(arguments)
            super().parseOptions(arguments)
        except usage.UsageError as why:
            refuse(str(why))

    def _refuse_abbreviated(self, arguments: list[str]) -> None:
        """Raise ``UsageError`` for a name that is not whole: ``getopt`` takes any clear beginning,
        and a new option may change what that means."""
        takes_value = {option.name: bool(option.metavar) for option in OPTIONS} | {"help": False, "version": False}
        left = iter(arguments)
        for argument in left:
            if not argument.startswith("--") or argument == "--":
                return  # what comes from here on is no option, and refused by ``parseArgs`` or ``getopt``
            name, equals, _ = argument[2:].partition("=")
            if name not in takes_value:
                near = difflib.get_close_matches(name, takes_value, 1) or [
                    one for one in takes_value if one.startswith(name)
                ]
                hint = f"; did you mean --{near[0]}?" if near else ""
                raise usage.UsageError(f"option --{name} not recognized{hint}")
            if takes_value[name] and not equals:
                next(left, None)

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; options begin with --")

    def postOptions(self) -> None:
        try:
            self.settings = load(self._command_line, os.environ, Path.cwd())
        except BadOption as why:
            refuse(str(why))
        self._drop_shared_pid_file()

    def _drop_shared_pid_file(self) -> None:
        """Two nodes in one directory would clash on ``twistd.pid``, and a stale one would block a
        start. The node writes its own into its data directory, under that directory's lock. Another
        name, given on purpose, stays."""
        if self.parent is not None and self.parent["pidfile"] == _PID_FILE_OF_TWISTD:
            self.parent["pidfile"] = ""

    def remove_pid_file(self) -> None:
        """Remove the one asked of twistd, which does so unless cut short; raises ``OSError``."""
        if self.parent is not None and self.parent["pidfile"]:
            Path(self.parent["pidfile"]).unlink(missing_ok=True)

    def refuse_start(self, line: str) -> NoReturn:
        """As ``refuse``, once logging and forking are over: twistd has redirected ``sys.stderr`` to
        the log by then. A daemon tells the process that waits for it in the foreground, which would
        otherwise wait for ever."""
        text = " ".join(line.split())
        twistd: Mapping[str, Any] = self.parent or {}
        status_pipe = twistd.get("statusPipe")
        if status_pipe is not None:
            os.write(status_pipe, f"1 {text}".encode()[:_STATUS_BYTES_MAX])
            os.close(status_pipe)
        if status_pipe is not None or twistd.get("logfile"):
            _log.error("the node does not start: {why}", why=text, event="start_refused")
        if status_pipe is None and sys.__stderr__ is not None:
            print("taskqueue:", text, file=sys.__stderr__, flush=True)
        raise SystemExit(1)

    def getSynopsis(self) -> str:
        return "Usage: twistd [twistd options] taskqueue [options]"

    def getUsage(self, width: int | None = None) -> str:
        return help_text(width or int(os.environ.get("COLUMNS", "0") or 0) or 100)

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(
            f"taskqueue {distributions.version()} (Python {platform.python_version()}, Twisted {twisted_copyright.version})"
        )
        raise SystemExit(0)

    def opt_help(self) -> NoReturn:
        """Print this help and exit."""
        print(self)
        raise SystemExit(0)


def _recorder(option: OptionRow) -> Callable[..., None]:
    def record_value(self: Options, value: str) -> None:
        self._command_line.setdefault(option.name, []).append(value)

    def record_flag(self: Options) -> None:
        self._command_line[option.name] = ["true"]

    record = record_value if option.metavar else record_flag
    record.__doc__ = option.help
    return record


for _option in OPTIONS:
    setattr(Options, f"opt_{_option.name.replace('-', '_')}", _recorder(_option))


def help_text(width: int = 100) -> str:
    """The options in the order of the table, one aligned column of names and one of words."""
    rows = [(f"--{option.name}{option.metavar and ' ' + option.metavar}", _described(option)) for option in OPTIONS]
    rows += [("--help", "Show this help and exit."), ("--version", "Show the version and exit.")]
    column = max(len(names) for names, _ in rows) + 4
    lines = ["", "Options:"]
    for names, words in rows:
        wrapped = textwrap.wrap(words, max(width - column, 30))
        lines.append(f"  {names:<{column - 2}}{wrapped[0]}")
        lines += [" " * column + line for line in wrapped[1:]]
    lines += [
        "",
        "Times: 24h, 1h30m, 30s, 500ms; a bare number is seconds. Sizes: 16MiB, 500kB; a bare number is bytes.",
        "Each option is also an environment variable (--data-dir: TQ_DATA_DIR) and a key of the TOML file (data-dir).",
        "NODE_ID, HTTP_ADDR and JOIN_ADDR are understood too; HTTP_ADDR also opens its port + 2000.",
    ]
    return "\n".join(line if line.startswith("  ") else textwrap.fill(line, width) for line in lines)


def _described(option: OptionRow) -> str:
    return option.help if option.default is None else f"{option.help} [default: {option.default}]"

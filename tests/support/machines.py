"""Machines on one network: each a namespace of its own with an address, a file system, a root shell and a real systemd.

All of it is on this machine: `ip netns`, a bridge, overlays of its file system, `systemd-nspawn`. What a machine writes goes
into its overlay, and every namespace, mount and process is gone once ``Machines.close`` has run. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import PROJECT, until

TOOLS = ("ip", "nft", "nsenter", "unshare", "systemd-nspawn", "systemd-sysusers", "openssl", "curl", "mount")
NETWORK = "10.20.0"
"""Of the page. Nobody else sees it: the bridge, too, is in a namespace."""
DESK = 10
BOOT_S, COMMAND_S = 60.0, 120.0
VENV = Path("/opt/taskqueue/venv")
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "data", "build", "dist", "*.egg-info", "__pycache__", "dropin.cache", "tests", "bench", "newsfragments"
)
NOT_DEPENDENCIES = shutil.ignore_patterns("__editable__*", "tq_node*", "__pycache__", "*.pth")
NOT_STARTED = (
    "getty.target", "systemd-logind.service", "systemd-timesyncd.service", "systemd-networkd.service",
    "systemd-resolved.service", "redis-server.service", "ssh.service", "systemd-firstboot.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
)  # fmt: skip
"""Of whatever is installed here, what the machines have no use for."""


def missing() -> str | None:
    """Why there can be no machines here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces and overlays need root"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return (
            f"not installed here: {', '.join(lacking)} (Debian: iproute2, nftables, systemd-container, openssl, curl)"
        )
    if Path(sys.base_prefix).parts[1:2] in (("home",), ("root",)):
        return "the units see no /home and no /root, and the Python is there"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode != 0:
        return "no namespaces may be made here"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "this kernel knows no overlays"
    return None


class Typed(NamedTuple):
    """A command that was typed, and all that came back."""

    code: int
    said: str


class Shell:
    """A shell that stays: what one command sets the next one sees."""

    def __init__(self, name: str, command: Sequence[str | Path], cwd: Path | None = None, path: str = "") -> None:
        self.name = name
        self._mark = f"-- {uuid.uuid4().hex}"
        environment = {"PATH": path or os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
        self._process = subprocess.Popen(
            [*command, "bash", "--noprofile", "--norc"], cwd=cwd, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def type(self, command: str) -> Typed:
        """Run it to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\nstatus=$?; echo; echo '{self._mark}' $status; (exit $status)\n")
        self._process.stdin.flush()
        said: list[str] = []
        for line in self._process.stdout:
            if line.startswith(self._mark):
                return Typed(int(line.rpartition(" ")[2]), "".join(said).rstrip("\n"))
            said.append(line)
        raise AssertionError(f"the shell of {self.name} ended: {''.join(said)}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


class Machines:
    """``node-1``, ... with the addresses ``10.20.0.1``, ..., and the desk of whoever sets them up, ``10.20.0.10``.

    The desk has the tools of clients, and ``scp``, which copies into the machines' file systems.
    """

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.names = [f"node-{number}" for number in range(1, count + 1)]
        self.desk_folder = directory / "desk"
        self._directory = directory
        self._tag = f"tq{os.getpid()}"
        self._ends = contextlib.ExitStack()
        self._shells: dict[str, Shell] = {}
        self._image = directory / "image"

    def close(self) -> None:
        self._ends.close()

    # --- what all machines have: typed once, into what their file systems lie upon ---
    def install(self, commands: Sequence[str]) -> list[Typed]:
        """Type the commands that install, where the machines do not run yet; in the project's folder.

        What pip would fetch is there already, from this environment: the tests need no network.
        """
        upper = self._image / "upper"
        (upper / "root").mkdir(parents=True)
        shutil.copytree(PROJECT, upper / "root/taskqueue", ignore=NOT_SOURCE)
        dependencies = upper / "opt/taskqueue/dependencies"
        shutil.copytree(sysconfig.get_path("purelib"), dependencies, ignore=NOT_DEPENDENCIES, copy_function=_link)
        for unit in NOT_STARTED:
            masked = upper / "etc/systemd/system" / unit
            masked.parent.mkdir(parents=True, exist_ok=True)
            masked.symlink_to("/dev/null")
        root = self._overlay(self._image, Path("/"))
        (root / "etc/machine-id").unlink(missing_ok=True)
        shutil.rmtree(root / "etc/systemd/system/multi-user.target.wants", ignore_errors=True)
        python = Path(sys.base_prefix, "bin")
        shell = Shell("image", ["chroot", root], path=f"{python}:/usr/sbin:/usr/bin:/sbin:/bin")
        try:
            shell.type("cd /root/taskqueue; export PIP_NO_DEPS=1 PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0")
            done = []
            for command in commands:
                if "systemctl" in command:  # nobody runs there to be told
                    continue
                done.append(shell.type(command))
                if " -m venv " in command:
                    (site,) = (root / VENV.relative_to("/")).glob("lib/python*/site-packages")
                    (site / "dependencies.pth").write_text("/opt/taskqueue/dependencies\n")
                    twistd = root / VENV.relative_to("/") / "bin/twistd"
                    twistd.write_text(f"#!{VENV}/bin/python\nfrom twisted.scripts.twistd import run\nrun()\n")
                    twistd.chmod(0o755)
        finally:
            shell.close()
        return done

    # --- starting ---
    def boot(self) -> None:
        """Make the network, and start all machines."""
        net = f"{self._tag}-net"
        self._namespace(net)
        _ip("-n", net, "link", "add", "br0", "type", "bridge")
        _ip("-n", net, "address", "add", f"{NETWORK}.{DESK}/24", "dev", "br0")
        for device in ("br0", "lo"):
            _ip("-n", net, "link", "set", device, "up")
        for number, name in enumerate(self.names, 1):
            own = f"{self._tag}-{name}"
            self._namespace(own)
            _ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", net)
            _ip("-n", net, "link", "set", name, "master", "br0", "up")
            _ip("-n", own, "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", own, "link", "set", device, "up")
        for process in [self._start(name) for name in self.names]:
            self._enter(*process)
        self.desk_folder.mkdir()
        (self.desk_folder / "deploy").symlink_to(PROJECT / "deploy")
        self._shells["desk"] = Shell(
            "desk", ["ip", "netns", "exec", net], cwd=self.desk_folder, path=f"{self._tools()}:{os.environ['PATH']}"
        )
        self._ends.callback(self._shells["desk"].close)

    def _start(self, name: str) -> tuple[str, subprocess.Popen[bytes]]:
        root = self._overlay(self._directory / name, self._image / "root")
        (root / "etc/hostname").write_text(f"{name}\n")
        log = (self._directory / f"{name}.log").open("wb")
        self._ends.callback(log.close)
        process = subprocess.Popen(
            [
                "systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine={self._tag}-{name}",
                f"--hostname={name}", f"--network-namespace-path=/run/netns/{self._tag}-{name}", "--register=no",
                "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--console=pipe", "--capability=CAP_NET_ADMIN",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._ends.callback(_end, process)
        return name, process

    def _enter(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until a machine is up, and open a shell on it."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        leader = until(lambda: _init_of(children), deadline_s=BOOT_S, what=f"{name} is begun")
        enter = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        shell = Shell(name, enter, path="/usr/sbin:/usr/bin:/sbin:/bin:/opt/taskqueue/venv/bin")
        self._ends.callback(shell.close)
        self._shells[name] = shell
        until(
            lambda: shell.type("systemctl is-system-running").said in ("running", "degraded"),
            deadline_s=BOOT_S, what=f"{name} is up",
        )  # fmt: skip

    def _tools(self) -> Path:
        """Programs for the desk: those of an installation, and an ``scp`` to the machines."""
        folder = self._directory / "tools"
        folder.mkdir()
        for name, module in (
            ("tq-token", "tq_node.cli.token_tool"), ("tq-audit", "tq_node.cli.audit_tool"), ("tq-tui", "tq_tui"), ("python", ""),
        ):  # fmt: skip
            start = f"-m {module}" if module else ""
            (folder / name).write_text(f'#!/bin/sh\nPYTHONPATH={PROJECT} exec {sys.executable} {start} "$@"\n')
        roots = "\n".join(
            f"root@{NETWORK}.{number}:*) root={self._directory / name / 'root'} ;;"
            for number, name in enumerate(self.names, 1)
        )
        (folder / "scp").write_text(
            f'#!/bin/bash\nset -eu\n[ "$1" = -q ] && shift\nto=${{!#}}\ncase $to in\n{roots}\nesac\n'
            'exec install -m 600 -t "$root${to#*:}" "${@:1:$#-1}"\n'
        )
        for made in folder.iterdir():
            made.chmod(0o755)
        return folder

    # --- using ---
    def type(self, where: str, command: str) -> Typed:
        """Type a command at the desk, or as root on a machine."""
        return self._shells[where].type(command)

    def _overlay(self, place: Path, below: Path) -> Path:
        for name in ("upper", "work", "root"):
            (place / name).mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={below},upperdir={place / 'upper'},workdir={place / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, place / "root"], check=True)
        self._ends.callback(_unmount, place / "root")
        return place / "root"

    def _namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._ends.callback(_ip, "netns", "delete", name)


def _link(source: str, target: str) -> None:
    """Copy a file by a second name for it; where that can't be, as it is."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=COMMAND_S)


def _init_of(children: Path) -> int | None:
    """The machine's first process, once it has its own root."""
    for pid in children.read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                return int(pid)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Pull a machine's plug: what runs on it ends with it."""
    process.kill()
    process.wait()


def _unmount(root: Path) -> None:
    for _ in range(50):
        if not os.path.ismount(root) or subprocess.run(["umount", root], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", root], check=True)

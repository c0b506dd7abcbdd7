"""A module that starts a program for all its tasks."""

from __future__ import annotations

import subprocess
from typing import Any

from tq_node import Context, task

servant = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)


@task("echo")
def pid_of_the_servant(payload: Any, context: Context) -> int:
    assert servant.poll() is None
    return servant.pid

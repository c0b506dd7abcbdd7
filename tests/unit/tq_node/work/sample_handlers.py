"""Handlers that do everything a handler may do wrong, for the tests of this folder."""

from __future__ import annotations

import contextvars
import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tq_node import Context, Reject, Retry, task

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred


@task("echo", timeout=30, max_attempts=5, backoff=2, queue="bulk")
def echo(payload: Any, context: Context) -> Any:
    return payload


@task("about")
def about(payload: Any, context: Context) -> dict[str, Any]:
    return {
        "task_id": context.task_id,
        "attempt": context.attempt,
        "token": list(context.token),
        "deadline": context.deadline,
        "cancelled": context.cancelled,
        "pid": os.getpid(),
        "session": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read(),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "pythonpath": os.environ.get("PYTHONPATH"),
    }


@task("raise")
def raises(payload: Any, context: Context) -> None:
    raise ValueError(f"no good: {payload}")


@task("rude")
def rude(payload: Any, context: Context) -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even a message")

    raise RudeError


@task("retry")
def retry(payload: Any, context: Context) -> None:
    raise Retry(payload)


@task("reject")
def reject(payload: Any, context: Context) -> None:
    raise Reject("never")


@task("exit")
def exits(payload: Any, context: Context) -> None:
    sys.exit(payload)


@task("interrupt")
def interrupts(payload: Any, context: Context) -> None:
    raise KeyboardInterrupt


@task("os_exit")
def os_exits(payload: Any, context: Context) -> None:
    os._exit(payload)


@task("kill_self")
def kills_itself(payload: Any, context: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@task("segfault")
def segfaults(payload: Any, context: Context) -> None:
    ctypes.string_at(0)


@task("sleep")
def sleeps(payload: Any, context: Context) -> str:
    context.log("sleeping")
    time.sleep(payload)
    return "slept"


@task("spin")
def spins(payload: Any, context: Context) -> None:
    while True:
        pass


@task("hold_gil")
def holds_gil(payload: Any, context: Context) -> None:
    ctypes.PyDLL(None).usleep(int(payload * 1_000_000))


@task("listen")
def listens(payload: Any, context: Context) -> str:
    context.progress(0.5, str(os.getpid()))
    while not context.cancelled:
        time.sleep(0.01)
    return "stopped in order"


@task("print")
def prints(payload: Any, context: Context) -> int:
    print("one")
    print("two", file=sys.stderr)
    os.system("echo three")
    print("four", end="")
    return os.getpid()


@task("print_some")
def prints_some(payload: Any, context: Context) -> None:
    """``payload``: what to print, and how; None: nothing."""
    if payload is None:
        return
    how, text = payload
    if how == "python":
        print(text)
    elif how == "fd":
        os.write(1, f"{text}\n".encode())
    else:
        os.system(f"echo {text}")


@task("begin")
def begins(payload: str, context: Context) -> int:
    """Says in a file that it has begun."""
    with open(payload, "ab", buffering=0) as file:
        file.write(f"{context.task_id}\n".encode())
    return os.getpid()


@task("flood")
def floods(payload: Any, context: Context) -> None:
    while True:
        print("x" * 1000)


@task("log")
def logs(payload: Any, context: Context) -> None:
    for number in range(payload):
        context.log(f"line {number}")


@task("big_result")
def big_result(payload: int, context: Context) -> str:
    return "x" * payload


@task("not_json")
def not_json(payload: Any, context: Context) -> Any:
    return {"set": {1, 2}, "nan": float("nan"), "bytes": b"x", "object": object()}[payload]


@task("garbage")
def garbage(payload: Any, context: Context) -> None:
    os.write(4, bytes.fromhex(payload))
    time.sleep(60)


@task("close_fds")
def closes_fds(payload: Any, context: Context) -> str:
    os.closerange(3, 100)
    return "closed"


@task("grandchild")
def grandchild(payload: Any, context: Context) -> int:
    """Leaves a process behind that holds the output of this one."""
    return subprocess.Popen(["sleep", str(payload)]).pid


@task("hang_with_grandchild")
def hang_with_grandchild(payload: Any, context: Context) -> None:
    context.log(str(subprocess.Popen(["sleep", "600"]).pid))
    time.sleep(600)


@task("own_sessions")
def own_sessions(payload: Any, context: Context) -> list[int]:
    """Programs in sessions of their own, one of them without a parent. ``payload``: how the attempt goes on."""
    one = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    other = subprocess.run(
        ["sh", "-c", "setsid sleep 600 >/dev/null & echo $!"],
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
    )
    pids = [one.pid, int(other.stdout)]
    context.log(" ".join(map(str, pids)))
    if payload == "hang":
        time.sleep(600)
    elif payload == "die":
        time.sleep(0.2)  # until that has been passed on
        os.kill(os.getpid(), signal.SIGKILL)
    elif payload == "raise":
        raise ValueError(pids)
    return pids


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@task("spoil")
def spoils(payload: str, context: Context) -> int:
    """Changes what others find."""
    variable.set("spoilt")
    match payload:
        case "directory":
            os.chdir("/")
        case "umask":
            os.umask(0o777)
        case "environment":
            os.environ["SPOILT"] = "1"
            os.environ.pop("PATH")
        case "path":
            sys.path.clear()
        case "other path":
            sys.path = ["nowhere"]
        case "recursion":
            sys.setrecursionlimit(100_000)
        case "signals":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        case "stream":
            sys.stdin = open("/dev/zero")  # noqa: SIM115
        case "closed":
            sys.stdin.close()
        case "limit":
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    return os.getpid()


@task("around")
def around(payload: Any, context: Context) -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "variable": variable.get(),
        "directory": os.getcwd(),
        "umask": umask,
        "environment": dict(os.environ),
        "path": sys.path,
        "recursion": sys.getrecursionlimit(),
        "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "sigchld": signal.getsignal(signal.SIGCHLD).name,  # type: ignore[union-attr]
        "stdin": [sys.stdin.name, sys.stdin.closed],
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "pid": os.getpid(),
    }


@task("hungry")
def hungry(payload: str, context: Context) -> int:
    if payload == "heap":
        kept = []
        while True:
            kept.append(bytearray(1 << 20))
    elif payload == "recursion":
        sys.setrecursionlimit(10**9)
        return recurse(0)
    return len(bytearray(8 << 20))


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


@task("fork")
def forks(payload: Any, context: Context) -> str:
    if os.fork() == 0:
        return "from the copy"
    os.wait()
    return "from the original"


@task("mark")
def marks(payload: str, context: Context) -> None:
    """Shows to another process that it is running."""
    with open(payload, "ab", buffering=0) as file:
        while True:
            file.write(b".")
            time.sleep(0.001)


@task("noise_after")
def noise_after(payload: Any, context: Context) -> int:
    """Leaves a thread behind that prints without end."""

    def noise() -> None:
        time.sleep(0.05)
        while True:
            print("x" * 1000)

    threading.Thread(target=noise, daemon=True).start()
    return os.getpid()


# --- async ---
waiting: list[Deferred[Any]] = []
"""What the async handlers wait for; tests fire it."""


def _deferred() -> Deferred[Any]:
    """One to wait for. Worker processes load this module, too, and start twice as fast without Twisted."""
    from twisted.internet.defer import Deferred

    waiting.append(Deferred())
    return waiting[-1]


@task("a_echo", run="reactor")
async def a_echo(payload: Any, context: Context) -> Any:
    return payload


@task("a_about", run="reactor")
async def a_about(payload: Any, context: Context) -> dict[str, Any]:
    return {"task_id": context.task_id, "attempt": context.attempt, "deadline": context.deadline}


@task("a_wait", run="reactor")
async def a_wait(payload: Any, context: Context) -> Any:
    context.log("before")
    context.progress(0.25, "waiting")
    deferred = _deferred()
    value = await deferred
    context.log("after")
    return value


@task("a_listen", run="reactor")
async def a_listen(payload: Any, context: Context) -> str:
    deferred = _deferred()
    try:
        await deferred
    finally:
        assert context.cancelled
    return "never"


@task("a_stubborn", run="reactor")
async def a_stubborn(payload: Any, context: Context) -> None:
    while True:
        deferred = _deferred()
        try:
            await deferred
        except Exception:
            context.log("not yet")


@task("a_raise", run="reactor")
async def a_raise(payload: Any, context: Context) -> None:
    raise ValueError(f"no good: {payload}")


@task("a_retry", run="reactor")
async def a_retry(payload: Any, context: Context) -> None:
    raise Retry(payload)


@task("a_reject", run="reactor")
async def a_reject(payload: Any, context: Context) -> None:
    raise Reject("never")


@task("a_exit", run="reactor")
async def a_exit(payload: Any, context: Context) -> None:
    sys.exit(payload)


@task("a_asyncio", run="reactor")
async def a_asyncio(payload: Any, context: Context) -> None:
    import asyncio

    await asyncio.sleep(0)


@task("a_big_result", run="reactor")
async def a_big_result(payload: int, context: Context) -> str:
    return "x" * payload


@task("a_not_json", run="reactor")
async def a_not_json(payload: Any, context: Context) -> Any:
    return {1, 2}


@task("a_log", run="reactor")
async def a_log(payload: Any, context: Context) -> None:
    for number in range(payload):
        context.log(f"line {number}")


@task("say")
def says(payload: Any, context: Context) -> None:
    print("printed", payload)
    print("to stderr", file=sys.stderr)
    logging.getLogger("shop").warning("logged %s", payload)
    print("unfinished", end="")


@task("a_say", run="reactor")
async def a_says(payload: Any, context: Context) -> None:
    print("printed", payload)
    print("to stderr", file=sys.stderr)
    logging.getLogger("shop").warning("logged %s", payload)
    print("unfinished", end="")


@task("a_say_twice", run="reactor")
async def a_says_twice(payload: Any, context: Context) -> None:
    print(payload, "before")
    deferred = _deferred()
    await deferred
    print(payload, "after")


def told(context: Context) -> dict[str, Any]:
    return {
        "type": context.type,
        "queue": context.queue,
        "tags": context.tags,
        "created_at": context.created_at,
        "attempt": context.attempt,
        "max_attempts": context.max_attempts,
        "attempts_left": context.attempts_left,
    }


@task("told")
def tells(payload: Any, context: Context) -> dict[str, Any]:
    return told(context)


@task("a_told", run="reactor")
async def a_tells(payload: Any, context: Context) -> dict[str, Any]:
    return told(context)


async def coroutine() -> None: ...


@task("returns_coroutine")
def returns_coroutine(payload: Any, context: Context) -> Any:
    """As a decorator does that hides what it wraps."""
    return coroutine()

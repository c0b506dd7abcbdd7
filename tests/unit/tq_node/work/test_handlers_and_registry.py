"""Declaring handlers, loading modules of them, and asking who handles what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tq_node
from tests.unit.tq_node.work import sample_handlers
from tests.unit.tq_node.work.conftest import SAMPLES
from tq_node import Context, limits, task
from tq_node.types import Announced, Backoff, HandledType, HandlerKind, Token
from tq_node.work import handlers
from tq_node.work.handlers import HandlerError, RunIn
from tq_node.work.registry import SIMULATED, Registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; what is imported and declared from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(handlers, "declared", [*handlers.declared])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"from tq_node import task\n{text}\n")


def refusal(*modules: str) -> str:
    with pytest.raises(HandlerError) as refused:
        Registry.load(modules)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_options_of_a_type() -> None:
    registry = Registry.load([SAMPLES])
    declared = {one.type: one for one in registry.declared()}
    assert declared["echo"] == HandledType("echo", "bulk", 5, 30_000, Backoff("constant", 2000, 2000, jitter=False))
    assert declared["raise"] == HandledType("raise")
    handler = registry.resolve("echo")
    assert handler is not None
    assert handler.run is RunIn.PROCESS
    assert handler.function is sample_handlers.echo
    assert registry.resolve("unheard of") is None
    assert "unheard of" not in declared
    assert registry.needs_processes


def test_without_modules_the_simulated_handlers_are_loaded() -> None:
    registry = Registry.load()
    assert registry.modules == (SIMULATED,)
    assert registry.types == ("*", "email", "image", "report")
    assert not registry.needs_processes


def test_where_nobody_asked_for_them_they_run_nothing_until_they_may() -> None:
    registry = Registry.load()
    assert (registry.takes, registry.announced) == ((), Announced(HandlerKind.NONE))
    assert registry.resolve("unheard of") is None
    assert registry.resolve("email") is None
    assert registry.stand_in(True)
    assert not registry.stand_in(True)
    anything = registry.resolve("unheard of")
    assert anything is not None
    assert anything.type == "*"
    assert (registry.takes, registry.announced.kind) == (None, HandlerKind.SIMULATED)
    assert registry.stand_in(False)
    assert registry.resolve("unheard of") is None


def test_simulated_by_name_may_always_and_are_no_handlers_of_its_own() -> None:
    registry = Registry.load(["simulated"])
    assert (registry.modules, registry.takes, registry.announced.kind) == ((SIMULATED,), None, HandlerKind.SIMULATED)
    assert not registry.stand_in(False)
    assert registry.resolve("email") is not None
    assert Registry.load([SAMPLES, "simulated"]).announced.kind is HandlerKind.OWN


def test_where_others_can_reach_the_node_none_stand_by() -> None:
    registry = Registry.load(may_simulate=False)
    assert (registry.modules, registry.takes, registry.announced) == ((), (), Announced(HandlerKind.NONE))
    assert not registry.stand_in(True)
    assert registry.resolve("email") is None


def test_what_the_others_are_told() -> None:
    announced = Registry.load([SAMPLES]).announced
    assert announced.kind is HandlerKind.OWN
    (echo,) = (one for one in announced.handled if one.type == "echo")
    assert echo == HandledType("echo", "bulk", 5, 30_000, Backoff("constant", 2000, 2000, jitter=False))


def test_more_types_than_the_others_can_be_told_are_refused(folder: Path) -> None:
    write(folder / "many.py", "for n in range(1001):\n    task(f't{n}')(lambda p, c: None)")
    assert refusal("many") == "1001 types have handlers; at most 1000 may"
    write(folder / "long.py", "for n in range(1000):\n    task(f'{n:04}' + '\\u20ac' * 96)(lambda p, c: None)")
    assert refusal("long").startswith("types and defaults of all handlers take more than 131072 bytes")


class TestLoadingAnew:
    def test_what_the_files_say_now(self, folder: Path) -> None:
        write(folder / "app" / "__init__.py", "")
        write(folder / "app" / "models.py", "ANSWER = 'first'")
        write(folder / "app" / "tasks.py", "from app.models import ANSWER\n@task('a')\ndef a(p, c): return ANSWER")
        registry = Registry.load(["app.tasks"])
        kept = registry.resolve("a")
        write(folder / "app" / "models.py", "ANSWER = 'second'")
        write(
            folder / "app" / "tasks.py",
            "from app.models import ANSWER\n@task('a', max_attempts=7)\ndef a(p, c): return ANSWER\n"
            "@task('b')\ndef b(p, c): ...",
        )
        loaded = registry.load_anew()
        assert registry.resolve("a") is kept, "nothing is touched until it is taken"
        registry.take(loaded)
        assert registry.types == ("a", "b")
        now = registry.resolve("a")
        assert now is not None
        assert kept is not None
        assert (kept.function(None, Context()), now.function(None, Context())) == ("first", "second")
        assert [one.max_attempts for one in registry.declared()] == [7, None]

    def test_a_handler_that_is_gone_is_gone(self, folder: Path) -> None:
        write(folder / "mine.py", "@task('a')\ndef a(p, c): ...\n@task('b')\ndef b(p, c): ...")
        registry = Registry.load(["mine"])
        write(folder / "mine.py", "@task('b')\ndef b(p, c): ...")
        registry.take(registry.load_anew())
        assert registry.types == ("b",)

    def test_where_it_fails_all_is_as_it_was(self, folder: Path) -> None:
        write(folder / "pack" / "__init__.py", "from pack import part")
        write(folder / "pack" / "part.py", "@task('a')\ndef a(p, c): return 1")
        registry = Registry.load(["pack"])
        modules = {name: sys.modules[name] for name in ("pack", "pack.part")}
        declared = list(handlers.declared)
        write(folder / "pack" / "part.py", "@task('a')\ndef a(p, c): return 2\n1 / 0")
        for _ in range(2):
            with pytest.raises(HandlerError, match="division by zero"):
                registry.load_anew()
        assert {name: sys.modules[name] for name in modules} == modules
        assert handlers.declared == declared
        write(folder / "pack" / "part.py", "@task('a')\ndef a(p, c): return 3")
        registry.take(registry.load_anew())
        now = registry.resolve("a")
        assert now is not None
        assert now.function(None, Context()) == 3

    def test_handlers_that_are_imported_from_elsewhere_are_new_too(self, folder: Path) -> None:
        write(folder / "elsewhere.py", "@task('a')\ndef a(p, c): return 1")
        write(folder / "mine.py", "from elsewhere import a")
        registry = Registry.load(["mine"])
        write(folder / "elsewhere.py", "@task('a')\ndef a(p, c): return 2")
        registry.take(registry.load_anew())
        now = registry.resolve("a")
        assert now is not None
        assert now.function(None, Context()) == 2

    def test_the_program_itself_is_left_alone(self) -> None:
        registry = Registry.load(["simulated"])
        before = sys.modules[SIMULATED]
        registry.take(registry.load_anew())
        assert sys.modules[SIMULATED] is before
        assert registry.resolve("email") is not None


def test_modules_are_found_in_the_working_directory_last(folder: Path) -> None:
    write(folder / "mine.py", "@task('mine')\ndef mine(payload, context): ...")
    write(folder / "json.py", "raise RuntimeError('hides the library')")
    assert Registry.load(["mine"]).types == ("mine",)
    assert sys.path[-1] == str(folder)


def test_handlers_of_submodules_and_imported_ones_count_once(folder: Path) -> None:
    write(folder / "pack" / "__init__.py", "from pack import one\nfrom elsewhere import other, other as alias")
    write(folder / "pack" / "one.py", "@task('one')\n@task('uno')\ndef one(payload, context): ...")
    write(
        folder / "elsewhere.py",
        "@task('other')\ndef other(payload, context): ...\n@task('not asked for')\ndef third(p, c): ...",
    )
    assert Registry.load(["pack"]).types == ("one", "other", "uno")
    assert Registry.load(["pack", "pack.one"]).types == ("one", "other", "uno")


def test_a_module_that_cannot_be_had(folder: Path) -> None:
    assert refusal("no_such") == "module no_such can't be imported: ModuleNotFoundError: No module named 'no_such'"
    (folder / "broken.py").write_text("import json\n\n1 / 0")
    assert refusal("broken").endswith(f"ZeroDivisionError: division by zero ({folder}/broken.py:3)")
    (folder / "unreadable.py").write_text("def (:")
    assert "SyntaxError" in refusal("unreadable")
    (folder / "leaving.py").write_text("raise SystemExit(3)")
    assert "SystemExit: 3" in refusal("leaving")
    write(folder / "empty.py", "")
    assert refusal("empty") == "module empty declares no handler with @task"
    assert "can't be imported" in refusal("")


def test_a_type_with_two_handlers(folder: Path) -> None:
    write(folder / "first.py", "@task('x')\ndef one(payload, context): ...")
    write(folder / "second.py", "@task('x')\ndef two(payload, context): ...")
    assert refusal("first", "second") == (f"type 'x' has two handlers: {folder}/first.py:2 and {folder}/second.py:2")


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ("@task('x')\ndef f(payload): ...", "called with (payload, context)"),
        ("@task('x')\ndef f(payload, context, more): ...", "called with (payload, context)"),
        ("@task('x')\ndef f(payload, *, context): ...", "called with (payload, context)"),
        ("@task('x')\ndef f(payload, context): yield", "does not yield"),
        ("@task('x')\nasync def f(payload, context): yield", "does not yield"),
        ("@task('')\ndef f(payload, context): ...", "1 to 100 characters"),
        ("@task('x' * 101)\ndef f(payload, context): ...", "1 to 100 characters"),
        ("@task(7)\ndef f(payload, context): ...", "1 to 100 characters"),
        ("@task\ndef f(payload, context): ...", "declares no handler"),
        ("@task('x', timeout=0)\ndef f(payload, context): ...", "timeout"),
        ("@task('x', timeout='1')\ndef f(payload, context): ...", "timeout"),
        ("@task('x', timeout=float('nan'))\ndef f(payload, context): ...", "timeout"),
        ("@task('x', max_attempts=0)\ndef f(payload, context): ...", "max_attempts"),
        ("@task('x', max_attempts=True)\ndef f(payload, context): ...", "max_attempts"),
        ("@task('x', queue='')\ndef f(payload, context): ...", "queue"),
        ("@task('x', backoff=-1)\ndef f(payload, context): ...", "backoff"),
        ("@task('x', backoff={'kind': 'odd'})\ndef f(payload, context): ...", "'odd'"),
        ("@task('x', backoff={'kid': 1})\ndef f(payload, context): ...", "backoff has no 'kid'"),
        ("@task('x', backoff={'jitter': 1})\ndef f(payload, context): ...", "jitter"),
        ("@task('x', backoff={'cap': 'x'})\ndef f(payload, context): ...", "backoff cap"),
    ],
)
def test_a_declaration_that_does_not_fit(folder: Path, declaration: str, said: str) -> None:
    write(folder / "wrong.py", declaration)
    refused = refusal("wrong")
    assert said in refused
    assert "wrong" in refused


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (0, Backoff("constant", 0, 0, jitter=False)),
        (1.5, Backoff("constant", 1500, 1500, jitter=False)),
        ({}, Backoff()),
        ({"kind": "linear", "base": 2, "cap": 10, "jitter": False}, Backoff("linear", 2000, 10_000, jitter=False)),
        ({"base": 7200}, Backoff("exponential", 7_200_000, 7_200_000)),
    ],
)
def test_backoff(given: Any, kept: Backoff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "declared", [])

    @task("x", backoff=given)
    def handler(payload: Any, context: Context) -> None: ...

    assert handlers.declared[0].backoff == kept


def test_an_async_def_that_a_decorator_hides_is_refused_at_load(folder: Path) -> None:
    write(
        folder / "hidden.py",
        "import functools\n"
        "def timed(function):\n"
        "    @functools.wraps(function)\n"
        "    def inner(*arguments):\n"
        "        return function(*arguments)\n"
        "    return inner\n"
        "@task('hidden')\n@timed\n@timed\nasync def hidden(p, c): ...",
    )
    assert "a decorator makes a `def` of this `async def`" in refusal("hidden")


def test_what_runs_its_coroutine_by_itself_and_what_is_async_in_another_way(folder: Path) -> None:
    write(
        folder / "fine.py",
        "import asyncio, functools\n"
        "def blocking(function):\n"
        "    @functools.wraps(function)\n"
        "    def inner(*arguments):\n"
        "        return asyncio.run(function(*arguments))\n"
        "    del inner.__wrapped__\n"
        "    return inner\n"
        "class Called:\n"
        "    async def __call__(self, p, c): ...\n"
        "async def three(extra, p, c): ...\n"
        "@task('def')\n@blocking\nasync def one(p, c): ...\n"
        "called = task('object')(Called())\n"
        "partial = task('partial')(functools.partial(three, 1))\n",
    )
    registry = Registry.load(["fine"])
    kinds = {name: registry.resolve(name).run for name in ("def", "object", "partial")}  # type: ignore[union-attr]
    assert kinds == {"def": RunIn.PROCESS, "object": RunIn.ASYNCIO, "partial": RunIn.ASYNCIO}


def test_a_context_can_be_made_and_looked_at_in_a_test() -> None:
    context = Context(type="resize", queue="images", tags={"shop": "7"}, attempt=2, max_attempts=5, cancelled=True)
    assert (context.type, context.queue, context.tags, context.cancelled) == ("resize", "images", {"shop": "7"}, True)
    assert (context.attempt, context.max_attempts, context.attempts_left) == (2, 5, 3)
    assert context.created_at.tzinfo is not None
    assert (context.lines, context.fraction, context.note) == ((), None, None)
    context.log("one")
    context.log("two\nthree")
    context.progress(0.5, "half")
    assert (context.lines, context.fraction, context.note) == (("one", "two", "three"), 0.5, "half")
    assert "resize" in repr(context)


def test_a_context_of_ones_own_for_testing_a_handler() -> None:
    context = Context()
    context.progress(2, "done")
    context.log("a\nb")
    sample_handlers.logs(1, context)
    noted = context._notebook.take()
    assert noted is not None
    assert noted.progress is not None
    assert noted.progress.fraction == 1.0
    assert [line.line for line in noted.lines] == ["a", "b", "line 0"]
    assert (context.attempt, context.token, context.deadline, context.cancelled) == (1, Token(0, 0), None, False)
    assert limits.LOG_LINES_MAX > 3


@pytest.mark.parametrize("module", ["tq_node", "tq_node.work.child"])
def test_what_a_worker_process_imports_is_light(module: str) -> None:
    script = f"import sys, {module}\nprint([m for m in ('twisted', 'klein', 'asyncio', 'tq_node.facade') if m in sys.modules])"
    root = Path(tq_node.__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"

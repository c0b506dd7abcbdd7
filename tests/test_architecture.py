"""The rules of ARCHITECTURE.md that a machine can check: who imports whom, names, relations between limits."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.harness import PROJECT
from tq_node import limits
from tq_node.cli import config
from tq_node.store.sqlite.open_database import DATABASE_NAME

PURE_ROOMS = ("raft", "cluster", "partition")
FORBIDDEN = {
    *(
        "twisted",
        "klein",
        "treq",
        "sqlite3",
        "time",
        "random",
        "os",
        "uuid",
        "threading",
        "asyncio",
        "logging",
        "socket",
    ),
    *("secrets", "datetime", "pathlib", "io", "select", "subprocess", "multiprocessing", "signal", "concurrent"),
    *("tempfile", "shutil", "http", "urllib"),
}
PURE_THIRD_PARTY = {"msgspec", "attrs", "attr"}
ONLY_IN_PLACEMENT = "mmh3"
BUILTINS_WITH_EFFECTS = {"open", "print", "input", "exec", "eval", "__import__"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def imports_of(tree: ast.AST) -> Iterator[str]:
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, "imports are absolute"
            assert part.module is not None
            yield part.module
            yield from (f"{part.module}.{alias.name}" for alias in part.names)


PURE_FILES = files_of(*(f"tq_node/{room}" for room in PURE_ROOMS))
PURE_BESIDES = [*files_of("tq_node/api/access"), PROJECT / "tq_node/tokens.py"]
"""Parts of rooms that are not pure themselves: who may call what depends on nothing but what is handed in."""


def test_a_pure_package_has_no_clock_disk_network_or_dice() -> None:
    for path in PURE_FILES:
        tree = ast.parse(path.read_text())
        room = path.relative_to(PROJECT / "tq_node").parts[0]
        for name in imports_of(tree):
            top = name.partition(".")[0]
            assert top not in FORBIDDEN, f"{relative(path)} imports {name}"
            if top == ONLY_IN_PLACEMENT:
                assert relative(path) == "tq_node/cluster/placement.py"
            elif top == "tq_node":
                assert name == "tq_node" or name.split(".")[1] in (room, "types", "tokens", "errors", "limits"), (
                    f"{relative(path)} imports {name}"
                )
            else:
                assert top in sys.stdlib_module_names or top in PURE_THIRD_PARTY, f"{relative(path)} imports {name}"
        called = {
            part.func.id for part in ast.walk(tree) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
        }
        assert not called & BUILTINS_WITH_EFFECTS, relative(path)


def test_who_may_is_judged_without_a_clock_disk_network_or_dice() -> None:
    allowed = ("types", "tokens", "errors", "limits")
    for path in PURE_BESIDES:
        for name in imports_of(ast.parse(path.read_text())):
            top = name.partition(".")[0]
            assert top not in FORBIDDEN, f"{relative(path)} imports {name}"
            if top == "tq_node":
                is_own = name.startswith("tq_node.api.access")
                assert is_own or name == "tq_node" or name.split(".")[1] in allowed, f"{relative(path)} imports {name}"
            else:
                assert top in sys.stdlib_module_names or top in PURE_THIRD_PARTY, f"{relative(path)} imports {name}"


def test_there_are_pure_packages() -> None:
    assert len(PURE_FILES) > 3


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-logo", "--no-cache"], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def import_circles() -> set[frozenset[str]]:
    """Sets of modules that reach one another by imports, those inside functions and ``TYPE_CHECKING`` included."""
    files = {module_of(path): path for path in files_of("tq_node", "tq_tui")}
    imported = {
        module: set(imports_of(ast.parse(path.read_text()))) & files.keys() - {module} for module, path in files.items()
    }
    for module, names in imported.items():
        # ``from package import module`` names both; the package is only imported on the way.
        imported[module] = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}

    def reached_from(start: str) -> set[str]:
        reached: set[str] = set()
        ahead = [start]
        while ahead:
            found = imported[ahead.pop()] - reached
            reached |= found
            ahead += found
        return reached

    reached = {module: reached_from(module) for module in files}
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in files
        if module in reached[module]
    }


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert not import_circles()


def test_names_of_modules_say_something() -> None:
    for path in files_of("tq_node", "tq_tui", "tests", "twisted"):
        assert path.stem not in VAGUE_NAMES, relative(path)


def test_no_folder_has_a_vague_name() -> None:
    folders = {part for path in files_of("tq_node", "tq_tui") for part in path.relative_to(PROJECT).parts[:-1]}
    assert not folders & VAGUE_NAMES


def test_only_the_composition_root_knows_everybody_and_nobody_knows_it() -> None:
    for path in files_of("tq_node", "tq_tui"):
        assert "tq_node.node.service" not in set(imports_of(ast.parse(path.read_text()))), relative(path)


def test_the_console_knows_nothing_of_the_node() -> None:
    for path in files_of("tq_tui"):
        tops = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
        assert not tops & {"tq_node", "twisted", "klein", "treq"}, relative(path)


class TestLimits:
    """Relations that hold the bounds together; ``limits`` asserts more of them at import."""

    def test_a_payload_fits_into_an_entry_and_a_body(self) -> None:
        assert limits.PAYLOAD_BYTES_MAX + 64 * limits.KIB <= limits.ENTRY_BYTES_MAX
        assert limits.PAYLOAD_BYTES_MAX < limits.BODY_BYTES_MAX

    def test_a_result_fits_into_a_frame(self) -> None:
        assert limits.RESULT_BYTES_MAX < limits.CHILD_FRAME_BYTES_MAX

    def test_a_lease_survives_two_lost_renewals(self) -> None:
        assert 3 * limits.LEASE_RENEW_MS < limits.LEASE_MS - limits.LEASE_MARGIN_MS

    def test_the_disk_reserve_lies_above_the_floor(self) -> None:
        assert limits.DISK_FLOOR_BYTES < limits.MIN_FREE_DISK_BYTES

    def test_what_waits_for_the_disk_holds_several_entries(self) -> None:
        assert limits.UNCOMMITTED_BYTES_MAX >= 4 * limits.ENTRY_BYTES_MAX
        assert limits.UNAPPLIED_BYTES_MAX >= 4 * limits.ENTRY_BYTES_MAX

    def test_a_page_is_found_within_its_scan(self) -> None:
        assert limits.LIST_LIMIT_DEFAULT <= limits.LIST_LIMIT_MAX <= limits.LIST_SCAN_ROWS_MAX


def test_an_empty_data_directory_is_one_without_the_store_s_file() -> None:
    assert config.STORE_FILE == DATABASE_NAME


COLLABORATORS_MAX = 6
MORE_COLLABORATORS = {"AsyncQueue", "Context", "Queue"}
"""What users are given or make themselves: each field may be given alone, and none is a part of ours."""


def test_a_constructor_takes_at_most_six_collaborators() -> None:
    found = set()
    for path in files_of("tq_node", "tq_tui"):
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.ClassDef):
                for method in part.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        given = len(method.args.args) - 1 + len(method.args.kwonlyargs)
                        if given > COLLABORATORS_MAX:
                            found.add(part.name)
    assert found == MORE_COLLABORATORS


MIXINS = {"RequestLifecycle"}
"""Each class that is made of one gives its attributes their values."""


def classes() -> dict[str, ast.ClassDef]:
    trees = (ast.parse(path.read_text()) for path in files_of("tq_node", "tq_tui"))
    return {part.name: part for tree in trees for part in ast.walk(tree) if isinstance(part, ast.ClassDef)}


def declares_fields(part: ast.ClassDef, known: dict[str, ast.ClassDef]) -> bool:
    """Whether annotations alone make its attributes, or a base that is not ours does: ``Struct``, Twisted's."""
    if any("dataclass" in ast.unparse(decorator) for decorator in part.decorator_list):
        return True
    bases = {ast.unparse(base).partition("[")[0] for base in part.bases} - {"Generic"}
    return any(base not in known or declares_fields(known[base], known) for base in bases)


def test_no_attribute_is_without_a_value() -> None:
    """What an object needs is recovered first, and the object made then: no attribute that only ``start`` fills."""
    known = classes()
    for name, part in known.items():
        bare = [one for one in ast.walk(part) if isinstance(one, ast.AnnAssign) and one.value is None]
        assert not [one for one in bare if isinstance(one.target, ast.Attribute)], name
        if name not in MIXINS and not declares_fields(part, known):
            assert not [one for one in part.body if one in bare and "ClassVar" not in ast.unparse(one)], name
    for path in files_of("tq_node", "tq_tui"):
        for one in ast.walk(ast.parse(path.read_text())):
            if isinstance(one, ast.Assert):
                said = ast.unparse(one.test)
                assert not (said.startswith("self.") and said.endswith(" is not None")), f"{relative(path)}: {said}"

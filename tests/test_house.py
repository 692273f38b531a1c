"""The rooms of the package import only what the plan lets them, and most of them no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src"
BASE = {"core", "config", "data", "augment", "models", "optim"}
TRAINING = BASE | {"tasks", "training"}
# What a room may import beside itself: a package with all in it, or one module.
ALLOWED = {
    "core": set[str](),
    "config": {"core"},
    "data": {"core"},
    "augment": {"core"},
    "models": {"core"},
    "optim": {"core"},
    "tasks": {"core", "models", "optim"},
    "training": TRAINING,
    "inference": {"core", "config", "data", "models", "training"},
    "sweep": {"core", "config", "data.datasets"},
    "compare": {"core", "config"},
    "benchmark": TRAINING | {"inference"},
}
NEEDS_TORCH = {"vitlab.core.hardware", "vitlab.core.checkpoint", "vitlab.core.batch"}
FREE_OF_TORCH = ("core", "config", "sweep", "compare")

BLOCKED = """
import importlib, sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "lightning", "timm"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Blocked())
failed = False
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed = True
        # The last lines of ours say by which way.
        way = [f for f in traceback.extract_tb(error.__traceback__) if "vitlab" in f.filename]
        print(f"{name}: {error}, by {way[-1].filename}:{way[-1].lineno}")
sys.exit(failed)
"""


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_module(path): path for path in sorted((SOURCE / "vitlab").rglob("*.py"))}


def read_imports(module: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of ours of every import, those in functions and for types included."""
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the module's whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = name if name in MODULES else name.rpartition(".")[0]
            if found in MODULES:
                yield node.lineno, found


IMPORTS = {module: list(read_imports(module)) for module in MODULES}


def test_every_module_is_in_one_of_the_twelve_rooms() -> None:
    rooms = {module.split(".")[1] for module in MODULES if "." in module}
    assert rooms - {"__main__"} == set(ALLOWED)
    loose = {path.name for path in (SOURCE / "vitlab").glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    wrong = {
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
        for module in MODULES
        if f"{module}.".startswith(f"vitlab.{room}.")
        for line, imported in IMPORTS[module]
        if not any(f"{imported}.".startswith(f"vitlab.{other}.") for other in {room} | ALLOWED[room])
    }
    may = ", ".join(sorted(ALLOWED[room])) or "nothing of ours"
    assert not wrong, f"{room} may import {may}:\n" + "\n".join(sorted(wrong))


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle of imports: " + " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for _, imported in IMPORTS[module]:
                visit(imported, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("room", FREE_OF_TORCH)
def test_a_room_is_imported_without_torch(room: str) -> None:
    names = [m for m in MODULES if f"{m}.".startswith(f"vitlab.{room}.") and m not in NEEDS_TORCH]
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED, "vitlab", *names], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_module_says_what_it_is_for() -> None:
    written = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    silent = [name for name, tree in written.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent

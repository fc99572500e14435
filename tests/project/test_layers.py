"""The shape of the code, held by tests: rooms, sizes, names, light import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "llmserve"
MODULES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}
ROOMS = sorted(entry.name for entry in SRC.iterdir() if (entry / "__init__.py").exists())


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(SRC.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


NAMES = {module_of(path): path for path in MODULES}


def imports(path: Path) -> set[str]:
    """Modules of llmserve that this one imports at run time, wherever in it."""
    typing_only = {
        id(inner)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else node.module)
        elif isinstance(node, ast.Import) and id(node) not in typing_only:
            found |= {alias.name for alias in node.names}
    return found & NAMES.keys() - {module_of(path)}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_rooms_import_only_downwards_in_the_order_that_the_architecture_page_lists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)
    assert sorted(listed) == ROOMS, "docs/architecture.md lists the rooms there are, once each"
    rank = {name: place for place, name in enumerate(listed)}
    upward = {
        f"{module} imports {other}"
        for module, path in NAMES.items()
        for other in imports(path)
        if room(module) and room(other) and rank[room(other)] < rank[room(module)]
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    """`__init__` of a package that re-exports counts as its own module."""
    TopologicalSorter({module: imports(path) for module, path in NAMES.items()}).prepare()


def test_the_package_root_holds_rooms_and_nothing_else() -> None:
    entries = {entry.name for entry in SRC.iterdir() if not entry.name.startswith("__")}
    assert entries == {*ROOMS, "py.typed"}


def test_a_class_name_means_one_thing_in_the_whole_package() -> None:
    counts = Counter(
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name: n for name, n in counts.items() if n > 1} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_modules_and_functions_stay_small_enough_to_hold_in_mind(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} has grown past 400 lines: split it by noun"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_importing_llmserve_imports_nothing_heavy() -> None:
    code = "import sys, llmserve; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "plotly", "openai", "pandas", "numpy", "uvicorn", "starlette"}
    assert not heavy & set(run.stdout.split())


def test_there_is_no_utils_module() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common")]


def test_no_name_that_a_package_exports_is_also_a_module_of_it() -> None:
    """Importing the module later would put it in the name's place."""
    for module, path in NAMES.items():
        if path.name != "__init__.py":
            continue
        own = {name.removeprefix(f"{module}.") for name in NAMES if name.startswith(f"{module}.")}
        exported = {
            alias.asname or alias.name
            for node in TREES[path].body
            if isinstance(node, ast.ImportFrom) and f"{node.module}" not in ("__future__", module)
            for alias in node.names
        }
        assert not exported & own, module

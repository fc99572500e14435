"""The shape of the code, held by tests: layers, sizes, light import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "llmserve"
LAYERS = [
    ("core",), ("mistakes",), ("plain",), ("bounded",), ("knobs",), ("events",),
    ("clock",), ("waits",), ("runtime",), ("interpreter",), ("models",),
    ("tenants",), ("agreements",),
    ("growing_heap",), ("holds",), ("ledger",), ("lengths",), ("pace",), ("policies",),
    ("user_policy",), ("waiting_line",), ("admission",),
    ("scheduler",), ("engines",), ("observe",), ("stream",), ("announcer",), ("lobby",),
    ("keeper",), ("runner",), ("tuner",), ("service",),
    ("endpoint",), ("svg",), ("figures",), ("sketch",), ("bench",), ("lab",), ("prompting",),
    ("accounts",),
    ("freed",), ("house",),
    ("ui",), ("session",), ("opening",),
    ("completion", "knobs_page", "magics", "nested", "bench_cli", "cli", "__init__"),
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(SRC.rglob("*.py"))


def part(path: Path) -> str:
    first = path.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Parts of llmserve that the module imports at run time, wherever in it."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llmserve"):
            tail = node.module.split(".")[1:] or [alias.name for alias in node.names]
            found.add(tail[0])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("llmserve.")}
    return found & RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_only_upward(path: Path) -> None:
    assert part(path) in RANK, f"{path.name} has no place in the list of layers"
    below = {name for name in imports(path) if RANK[name] > RANK[part(path)]}
    assert not below, f"{path} imports from below it: {below}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_modules_and_functions_stay_small_enough_to_hold_in_mind(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} has grown past 400 lines: split it by noun"
    for node in ast.walk(ast.parse(text)):
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

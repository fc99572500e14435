"""One maker of a request, and one place that phrases a range: held by reading the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "llmserve"
PHRASE = re.compile(
    r"\bmust (be|lie|hold)\b|\bwithin [{\d].* and\b|\bat (least|most) (one|\d|\{)"
    r"|\d or (more|fewer|less)\b|\b(above|below) \d|\bfrom \d+ up\b|\b(is a|whole) number\b"
    r"|\bnot between\b|\b(positive|negative)\b|\b(is|are) one of\b|\btrue or false\b"
    r"|\btakes? (a|an|one|text|true|level|[A-Z])\b"
)
ALLOWED: dict[str, tuple[str, str]] = {
    "models/training/": ("", "tools of the bundled model's making, which the wheel leaves out"),
    "engines/torch/cpu_kernels/limits.py": ("1 at least", "what kernels want of each other"),
    "engines/torch/text/chat_template.py": ("at least one message", "emptiness, not a range"),
    "engines/vllm/tokenizer.py": ("at least one message", "emptiness, not a range"),
    "entrypoints/http/prompts.py": ("at least one message", "emptiness, not a range"),
    "bench/load/request_kinds.py": ("at least one kind", "emptiness, not a range"),
    "bench/results/slo.py": ("at least one limit", "emptiness, not a range"),
    "entrypoints/commands/measure.py": ("--tokenizer takes", "the folder's lack is the point"),
    "serving/api_keys.py": ("or more printable", "a sentence about a key holds no value"),
    "dashboard/codec.py": ("at least a header", "a format of bytes, not a user's value"),
}
"""Modules that may say so themselves: the words, and why."""
VALIDATION = ("mistyped", "unlike", "out_of")
"""Its makers of an error, which are given the words for a kind or a range."""
REQUESTS = {
    "serving/requests.py": "the maker",
    "scheduling/user_policy.py": "made-up queues, on which a policy is tried",
    "engines/torch/step_loop.py": "the child's half of a request that was made",
    "engines/simulator/paced.py": "the same, of the simulator in a process",
}
SAMPLING = {
    "serving/requests.py": "the maker",
    "scheduling/user_policy.py": "made-up queues, on which a policy is tried",
    "engines/vllm/api_server.py": "of vLLM's own parameters, which vLLM has checked",
}


def modules() -> list[Path]:
    return [path for path in sorted(SRC.rglob("*.py")) if path.name != "validation.py"]


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def said(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts in what is raised, and in arguments of calls that make an error or a refusal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _makes_error(node)):
            yield from texts(node)


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, ast.unparse(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif not (isinstance(node, ast.Call) and ast.unparse(node.func) in VALIDATION):
        for inner in ast.iter_child_nodes(node):
            yield from texts(inner)


def _makes_error(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    return name.endswith("Error") or name in ("invalid", "UserError", "ContextExceeded", "blame")


def phrases(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    found = {f"{line}: {text}" for line, text in said(tree) if PHRASE.search(text)}
    words, _ = next((told for part, told in ALLOWED.items() if part in name_of(path)), (None, ""))
    return sorted(one for one in found if words is None or words not in one)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_module_but_validation_phrases_a_range_or_a_kind(path: Path) -> None:
    assert phrases(path) == [], "say it by a function of core/validation.py"


def test_the_scan_sees_a_phrase_wherever_it_is_raised(tmp_path: Path) -> None:
    for code in (
        'raise ValueError(f"{n} must be within {a} and {b}")',
        'def f():\n    raise ParamError("n", "n is a whole number, not 3")',
        'error = ValueError("rounds: 1 or more")\nraise error',
        'raise invalid(name, f"at most {most} replies")',
    ):
        tree = ast.parse(code)
        assert [text for _, text in said(tree) if PHRASE.search(text)], code
    assert not [text for _, text in said(ast.parse('"""It must be 1 or more."""')) if text]


@pytest.mark.parametrize("part", ALLOWED)
def test_every_exception_is_still_needed(part: str) -> None:
    words, why = ALLOWED[part]
    pages = [path.read_text() for path in modules() if part in name_of(path)]
    assert why
    assert any(words in page for page in pages)


@pytest.mark.parametrize(("kind", "makers"), [("Request", REQUESTS), ("SamplingParams", SAMPLING)])
def test_a_request_is_made_in_one_place(kind: str, makers: dict[str, str]) -> None:
    found = set()
    for path in modules():
        tree = ast.parse(path.read_text())
        ours = any(
            isinstance(node, ast.ImportFrom) and node.module == "llmserve.core.types"
            and kind in [alias.name for alias in node.names]
            for node in ast.walk(tree)
        )  # fmt: skip
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        if ours and any(isinstance(c.func, ast.Name) and c.func.id == kind for c in calls):
            found.add(name_of(path))
    assert found == makers.keys()

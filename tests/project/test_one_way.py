"""What is done in one place only, by the calls in the source."""

from __future__ import annotations

import ast
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "llmserve"


def callers(method: str) -> set[str]:
    """Modules in which something's `method` is called with an argument."""
    return {
        path.relative_to(SRC).as_posix()
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and node.args
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
    }


def test_every_event_leaves_through_the_publisher() -> None:
    assert callers("publish") == {"serving/publisher.py"}


def test_a_knobs_value_is_checked_only_where_it_comes_in() -> None:
    assert callers("changed") == {
        "entrypoints/session/serve.py",  # the first values
        "serving/service.py",  # cells, magics, sliders, HTTP
        "lab/settings.py",  # a comparison's and a sweep's, before anything runs
        "lab/simulation.py",
        "lab/calibration/valid_range.py",  # those of a file, and those to be simulated
        "lab/remote.py",  # what another server says
    }

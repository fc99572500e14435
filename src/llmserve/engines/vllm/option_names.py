"""The names of vLLM's start-up options, known before vLLM is imported, which takes many seconds.

Completion and tables ask here; a start asks vLLM's own class (`options.py`).
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from llmserve.engines.vllm.api_server import API_OPTIONS
from llmserve.engines.vllm.options import KNOBS, OURS

_ARGUMENTS = ("EngineArgs", "AsyncEngineArgs")


def option_names() -> list[str]:
    """Sorted; without vLLM those that are known anyway."""
    found = {"model", *_fields_in_source(), *API_OPTIONS, *OURS}
    return sorted(found - KNOBS.keys())


def _fields_in_source() -> set[str]:
    """Fields of vLLM's dataclasses of arguments, as its source spells them."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder of that name is no vLLM
        return set()
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return set()
    return {
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in _ARGUMENTS
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }

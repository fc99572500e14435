"""The private names of vLLM that live knobs and the tape need. A failure says which one moved."""

from __future__ import annotations

import subprocess
import sys

import pytest
import vllm

from llmserve.engines.vllm import RUN_ON
from llmserve.engines.vllm.private_api import ARG_PARSER, NAMES, Name, imported, installed, lost
from llmserve.engines.vllm.source_names import SourceTree


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return installed()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name.module}:{name.path}")
def test_a_private_name_of_vllm_is_where_it_was(tree: SourceTree, name: Name) -> None:
    assert lost(tree, (name,)) == []


def test_the_installed_release_is_the_one_this_is_written_for() -> None:
    assert vllm.__version__.startswith(f"{RUN_ON}.")


def test_a_name_that_moves_between_the_releases_is_imported_from_where_it_is() -> None:
    assert imported(ARG_PARSER).__name__ == "make_arg_parser"


def test_the_names_are_looked_up_without_importing_any_of_them() -> None:
    """A worker's modules take memory, and torch says into the cell that there is no triton."""
    look = (
        "import sys; from llmserve.engines.vllm.private_api import lost; assert lost() == []; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('vllm', 'torch')))"
    )
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
    assert "triton" not in told.stderr

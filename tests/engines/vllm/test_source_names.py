"""Names found in source that is read and never imported."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from llmserve.engines.vllm.source_names import SourceTree

FILES = {
    "pkg/__init__.py": """
import typing
if typing.TYPE_CHECKING:
    from .inner.deep import Lazy
from pkg.inner import *
raise SystemExit("it was imported")
""",
    "pkg/inner/__init__.py": """
from .deep import Base as Renamed, helper
from ..side import Side
import pkg.side as side_module
Alias = Renamed
""",
    "pkg/inner/deep.py": '''
class Lazy: ...

class Base:
    flag = True
    size: int

    @property
    def width(self): return 1

    def walk(self, a, /, b, *args, c=1, **rest):
        """a docstring"""
        self.found_in_walk = 3

try:
    import numpy
except ImportError:
    def helper(first): ...
else:
    def helper(second): ...

class Kind:
    ONE = 1
''',
    "pkg/side.py": """
from pkg import inner
from pkg.inner.deep import Base
from . import side as itself

class Side(Base): ...
class Far(inner.Renamed[int]): ...
class Round(RoundToo): ...
class RoundToo(Round): ...
from pkg.circle import gone
""",
    "pkg/circle.py": "from pkg.side import gone\n",
}


@pytest.fixture(params=["folder", "wheel"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> SourceTree:
    for name, text in FILES.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if request.param == "folder":
        return SourceTree(tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "pkg-1.whl", "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    return SourceTree(zipfile.Path(tmp_path / "pkg-1.whl"))


@pytest.mark.parametrize(
    ("module", "path", "place"),
    [
        ("pkg.inner.deep", "Base", "pkg.inner.deep:4"),
        ("pkg.inner.deep", "Base.flag", "pkg.inner.deep:5"),
        ("pkg.inner.deep", "Base.size", "pkg.inner.deep:6"),
        ("pkg.inner.deep", "Base.width", "pkg.inner.deep:9"),
        ("pkg.inner.deep", "Kind.ONE", "pkg.inner.deep:23"),
        ("pkg.inner.deep", "", "pkg.inner.deep:1"),
        ("pkg.inner", "Renamed", "pkg.inner.deep:4"),
        ("pkg.inner", "Alias.walk", "pkg.inner.deep:11"),
        ("pkg.inner", "Side.walk", "pkg.inner.deep:11"),
        ("pkg.inner", "side_module.Side", "pkg.side:6"),
        ("pkg.inner", "deep.Base", "pkg.inner.deep:4"),
        ("pkg", "Lazy", "pkg.inner.deep:2"),
        ("pkg", "helper", "pkg.inner.deep:20"),
        ("pkg.side", "Far.flag", "pkg.inner.deep:5"),
        ("pkg.side", "itself.Side", "pkg.side:6"),
    ],
)
def test_a_name_is_found_where_python_would_find_it(
    tree: SourceTree, module: str, path: str, place: str
) -> None:
    found = tree.find(module, path)
    assert found is not None
    assert found.place == place


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("pkg.gone", ""),
        ("pkg.inner.deep", "Gone"),
        ("pkg.inner.deep", "Base.gone"),
        ("pkg.inner.deep", "Base.found_in_walk"),
        ("pkg.inner.deep", "Base.flag.gone"),
        ("pkg.side", "gone"),
        ("pkg.side", "Round.gone"),
        ("elsewhere", "Base"),
    ],
    ids=[
        "no module", "no class", "no attribute", "set in a method alone", "of a value",
        "a circle of imports", "a circle of bases", "another package",
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_is_none(tree: SourceTree, module: str, path: str) -> None:
    assert tree.find(module, path) is None


def test_parameters_are_those_that_a_call_may_give(tree: SourceTree) -> None:
    walk, flag = (tree.find("pkg.inner.deep", f"Base.{name}") for name in ("walk", "flag"))
    assert walk is not None
    assert walk.parameters == {"self", "a", "b", "c"}
    assert flag is not None
    assert flag.parameters == frozenset()


def test_the_text_of_a_definition_ends_where_it_ends(tree: SourceTree) -> None:
    width, whole = tree.find("pkg.inner.deep", "Base.width"), tree.find("pkg.inner.deep", "")
    assert width is not None
    assert width.text == "    @property\n    def width(self): return 1"
    assert whole is not None
    assert whole.text == FILES["pkg/inner/deep.py"]


def test_the_modules_that_define_a_name_are_all_found(tree: SourceTree) -> None:
    assert tree.defining("helper") == ["pkg.inner.deep"]
    assert tree.defining("Alias") == ["pkg.inner"]
    assert tree.defining("Renamed") == []

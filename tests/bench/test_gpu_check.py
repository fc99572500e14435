"""The GPU check: parts that pass, fail, hang and die; its wheels; and a dry run of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu_check, gpu_wheels
from benchmarks.gpu_check import PARTS, Part, Setting, main, run_all, run_part, write_page
from benchmarks.gpu_results import FAILED, NOT_POSSIBLE, PASSED, Row, broken, read_rows, table

ROOT = Path(__file__).parents[2]
MADE_UP = """
import sys, time
from pathlib import Path
from benchmarks.gpu_results import NotPossible, Results

name, results = sys.argv[1], Results(Path(sys.argv[sys.argv.index("--results") + 1]))
with results.check("first") as said:
    said.append("1,234 tokens/s")
if name == "raises":
    with results.check("second") as said:
        said.append("half of it")
        raise ValueError("3 | 4\\nand a second line")
elif name == "lacks":
    with results.check("second"):
        raise NotPossible("no such card")
elif name == "dies":
    print("its last words", flush=True)
    sys.exit(7)
elif name == "hangs":
    Path(sys.argv[-1]).with_suffix(".pid").write_text(str(__import__("os").getpid()))
    time.sleep(600)
elif name == "passes":
    with results.check("second"):
        pass
"""


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    (tmp_path / "made_up_parts.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Setting("cuda", tmp_path, time.monotonic() + 100)


def part(name: str) -> Part:
    return Part(name, ("first", "second"), 100, module="made_up_parts")


FIRST = ("first", PASSED, "1,234 tokens/s")


@pytest.mark.parametrize(
    ("name", "outcome", "says"),
    [
        ("passes", PASSED, ""),
        ("raises", FAILED, r"half of it; ValueError: 3 \| 4"),
        ("lacks", NOT_POSSIBLE, "no such card"),
        ("dies", FAILED, r"its process ended with status 7: its last words \(log: dies.log\)"),
        ("forgets", FAILED, r"its process ended with status 0: it said nothing"),
    ],
)
def test_each_check_of_a_part_is_a_row_whatever_becomes_of_it(
    setting: Setting, name: str, outcome: str, says: str
) -> None:
    first, second = run_part(part(name), setting)
    assert (first.check, first.outcome, first.said) == FIRST
    assert (second.check, second.outcome) == ("second", outcome)
    assert re.match(says, second.said)
    assert broken([first, second]) == (outcome == FAILED)


def test_a_part_over_its_limit_is_ended_and_keeps_what_it_had(setting: Setting) -> None:
    """The limit is also how long it gets to write its first row: a slow machine gets more."""
    for limit_s in (3.0, 20.0, 90.0):
        first, second = run_part(replace(part("hangs"), limit_s=limit_s), setting)
        if first.outcome == PASSED:
            break
    assert (first.check, first.outcome, first.said) == FIRST
    assert second.outcome == FAILED
    assert second.said.startswith(f"its part took longer than {limit_s:.0f} s")
    assert not psutil.pid_exists(int((setting.out / "hangs.pid").read_text()))


def test_no_part_begins_when_the_time_is_used_up(setting: Setting) -> None:
    rows = run_part(part("passes"), replace(setting, deadline=time.monotonic()))
    assert {row.outcome for row in rows} == {NOT_POSSIBLE}
    assert {row.said for row in rows} == {"the time was used up before it"}


def test_a_part_that_wants_a_package_is_not_possible_without_it(setting: Setting) -> None:
    rows = run_part(replace(part("passes"), wants="no_such_package"), setting)
    assert {(row.outcome, row.said) for row in rows} == {
        (NOT_POSSIBLE, "no_such_package is not installed")
    }


def test_rows_of_an_earlier_run_do_not_count(setting: Setting) -> None:
    run_part(part("passes"), setting)
    later = run_part(replace(part("passes"), module="no_such_module"), setting)
    assert {row.outcome for row in later} == {FAILED}


def test_a_check_that_came_twice_keeps_its_failure_and_a_line_cut_off_is_none(
    tmp_path: Path,
) -> None:
    rows = [Row("a", PASSED, ""), Row("a", FAILED, "why"), Row("a", PASSED, "")]
    lines = [json.dumps(asdict(row)) for row in rows]
    (tmp_path / "rows").write_text("\n".join([*lines, '{"check": "b", "outc']))
    assert read_rows(tmp_path / "rows") == [Row("a", FAILED, "why")]


def test_the_table_escapes_what_would_end_a_cell_and_counts_outcomes() -> None:
    rows = [Row("a", PASSED, "1 | 2\n3", 1.25), Row("b", NOT_POSSIBLE, "no card")]
    lines = table("cuda", "one card", rows)
    assert lines[0] == "one card."
    assert "| a | passed | 1 \\| 2 3 | 1.2 |" in lines
    assert "| b | not possible | no card |  |" in lines
    assert lines[-1] == "1 passed, 0 failed, 1 not possible."
    assert table("cpu", "two cores", rows)[0].startswith("**A dry run on a CPU")


def test_where_there_is_no_gpu_nothing_runs_and_the_dry_run_is_named(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match=r"no CUDA device here; a dry run on a CPU: --device cpu"):
        run_all((), replace(setting, deadline=time.monotonic() + 100), ())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget-s", "601"], "601 is not above 0 and at most 600"),
        (["--only", "torch,memroy"], "there is no part memroy; there are torch, memory"),
        (["--device", "cpu", "--write"], "a dry run on a CPU does not go into docs/gpu.md"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_value(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert says in capsys.readouterr().err


def kept(folder: Path, device: str, rows: list[Row]) -> Path:
    whole = {"device": device, "machine": "one card", "rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(whole))
    return folder


def test_an_earlier_whole_run_goes_into_the_page_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    before = gpu_check.PAGE.read_text()
    page.write_text(before)
    rows = [Row(check, PASSED, "3") for one in PARTS for check in one.checks]
    with pytest.raises(SystemExit, match="nothing ran on a GPU"):
        write_page(kept(tmp_path, "cpu", rows), page)
    with pytest.raises(SystemExit, match="without --only"):
        write_page(kept(tmp_path, "cuda", rows[1:]), page)
    left_out = [replace(rows[0], outcome=NOT_POSSIBLE, said="left out by --only"), *rows[1:]]
    with pytest.raises(SystemExit, match="without --only"):
        write_page(kept(tmp_path, "cuda", left_out), page)
    assert page.read_text() == before
    write_page(kept(tmp_path, "cuda", rows), page)
    written = page.read_text()
    assert "Not run yet" not in written
    assert all(f"| {row.check} | passed | 3 |" in written for row in rows)


def test_the_command_begins_with_the_standard_library_alone() -> None:
    """A bare machine must be able to say what it lacks."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import benchmarks.gpu_check"
    subprocess.run([sys.executable, "-S", "-I", "-c", code], check=True)


def make_wheel(folder: Path, name: str, version: str) -> None:
    folder.mkdir(exist_ok=True)
    info, module = f"{name}-{version}.dist-info", f"{name}.py"
    files = {
        module: "brought = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_what_is_missing_is_installed_offline_into_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels", "made_up_need", "3.1")
    make_wheel(tmp_path / "wheels", "made_up_other", "1.0")
    make_wheel(tmp_path / "wheels", "psutil", "99.0")
    monkeypatch.setattr(gpu_wheels, "needs", lambda: {"made-up-need": "3.0", "psutil": "1.0"})
    brought = gpu_wheels.install(tmp_path / "wheels", tmp_path / "site")
    assert sorted(brought) == ["made-up-need", "made-up-other"]
    assert {one.name for one in (tmp_path / "site").glob("*.py")} == {
        "made_up_need.py", "made_up_other.py",
    }  # fmt: skip
    assert gpu_wheels.missing({"made-up-need": "3.0"}) == ["made-up-need"], "it is not in this venv"
    assert gpu_wheels.install(tmp_path / "wheels", tmp_path / "site") == brought, "again, as before"


def test_where_nothing_is_missing_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_wheels, "needs", lambda: {"psutil": "1.0"})
    assert gpu_wheels.install(tmp_path / "no-such-folder", tmp_path / "site") == []
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("need", "says"),
    [
        ({"made-up-need": "1"}, "needs made-up-need: run make gpu-wheels .* --wheels .now: .*none"),
        ({"psutil": "9999.1"}, "needs psutil: run make gpu-wheels"),
        ({"torch": "9999.1"}, "needs torch: install torch on this machine first"),
    ],
    ids=["absent", "too old", "from the machine"],
)
def test_a_need_that_is_nowhere_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: dict[str, str], says: str
) -> None:
    monkeypatch.setattr(gpu_wheels, "needs", lambda: need)
    with pytest.raises(SystemExit, match=says):
        gpu_wheels.install(tmp_path / "none", tmp_path / "site")


def test_a_folder_over_the_limit_is_refused_with_its_largest_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, "small", "1")
    assert gpu_wheels.weighed(tmp_path)[-1] == "0.0 MiB in 1 wheels (limit 64 MiB)"
    monkeypatch.setattr(gpu_wheels, "LIMIT", 10)
    with pytest.raises(SystemExit, match=r"too much for one folder(?s:.*)small-1-py3"):
        gpu_wheels.weighed(tmp_path)


def test_the_wheels_are_all_that_the_needs_need_and_none_of_the_machines_own() -> None:
    found = gpu_wheels.closure("3.12")
    assert {"starlette", "uvicorn", "msgspec", "llguidance", "anyio", "pytest", "pluggy"} <= {
        *found
    }
    assert not {*gpu_wheels.FROM_THE_MACHINE, *gpu_wheels.NOT_NEEDED} & {*found}
    assert found["starlette"] == importlib.metadata.version("starlette")
    dependencies = {
        gpu_wheels._parsed(line)[0]
        for line in importlib.metadata.requires("llmserve") or ()
        if "extra" not in line
    }
    assert {*gpu_wheels.NOT_NEEDED, *gpu_wheels.FROM_THE_MACHINE} <= dependencies


def bare_python(folder: Path, without: tuple[str, ...]) -> Path:
    """A venv that holds what this one does, less these distributions."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    lacking = {
        file.parts[0]
        for name in without
        for file in importlib.metadata.files(name) or ()
        if file.parts[0] != ".."
    }
    (here,) = Path(sys.prefix).glob("lib/python*/site-packages")
    for entry in here.iterdir():
        if entry.name not in lacking and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.mark.timeout(700)
def test_a_dry_run_runs_every_part_without_what_the_check_says_it_goes_without(
    tmp_path: Path,
) -> None:
    """About a minute of one core: torch is imported by each part."""
    python = bare_python(tmp_path / "bare", gpu_wheels.NOT_NEEDED)
    ran = subprocess.run(
        [python, "-m", "benchmarks.gpu_check", "--device", "cpu", "--out", tmp_path / "out"],
        cwd=ROOT / "tests", env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = [one.read_text()[-2000:] for one in (tmp_path / "out").glob("*.log")]
    assert ran.returncode == 0, "\n".join([ran.stdout, ran.stderr, *logs])
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    outcomes = {row["check"]: row["outcome"] for row in whole["rows"]}
    assert [*outcomes] == [check for one in PARTS for check in one.checks]
    passed = {check for one in PARTS[:4] for check in one.checks}
    passed -= {"NVML finds the GPU", "the tests marked gpu"}  # which need one, and say so
    assert {check for check, outcome in outcomes.items() if outcome == PASSED} >= passed
    assert FAILED not in outcomes.values()
    assert (tmp_path / "out" / "table.md").read_text() in ran.stdout
    assert "**A dry run on a CPU: none of this ran on a GPU.**" in ran.stdout

"""`make test` runs its stages in lanes: none is lost, and a failure of one is the run's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.stages import minutes, parse

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "stages.py"
MAKEFILE = """
one two three:
\t@echo "$@ begins"; echo "$@ goes on" >&2; echo "$@ ends"
waits:
\t@until [ -e opened ]; do sleep 0.01; done; echo "waited"
opens:
\t@touch opened
fails:
\t@echo "the reason"; exit 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def run(folder: Path, *phases: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *phases], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


def test_a_phase_is_lanes_of_stages() -> None:
    assert parse("a b | c") == [["a", "b"], ["c"]]
    assert parse("a") == [["a"]]


def test_every_stage_is_run_and_told_with_its_time(folder: Path) -> None:
    status, said = run(folder, "one", "two three | opens")
    assert status == 0
    assert said[-1] == "all tests passed"
    table = said[said.index("stage               min:s") + 1 : -1]
    assert {line.split()[0] for line in table} == {"one", "two", "three", "opens", "together"}
    assert all(re.fullmatch(r"\w+ +\d+:\d\d", line) for line in table)
    assert said.index("three ends") > said.index("two ends") > said.index("one ends")


def test_lanes_run_at_the_same_time(folder: Path) -> None:
    """The first waits for what the second does."""
    status, said = run(folder, "waits | opens")
    assert status == 0
    assert "waited" in said, "else it would wait for ever: the other lane opens"


def test_what_runs_beside_others_is_printed_in_one_piece(folder: Path) -> None:
    _, said = run(folder, "one | two | three")
    for stage in ("one", "two", "three"):
        at = said.index(f"== {stage}")
        assert said[at + 1 : at + 4] == [f"{stage} begins", f"{stage} goes on", f"{stage} ends"]


@pytest.mark.parametrize("phase", ["fails", "fails two | one", "one | fails two"])
def test_a_failure_fails_the_run_and_ends_its_lane(folder: Path, phase: str) -> None:
    status, said = run(folder, phase, "three")
    assert status == 1
    assert said[-1] == "failed: fails"
    assert "the reason" in said
    assert "two ends" not in said
    assert "three ends" not in said
    assert ("one ends" in said) == ("one" in phase), "the other lane goes to its end"


def test_minutes_are_written_as_on_a_clock() -> None:
    assert [minutes(s).strip() for s in (0, 59.9, 61, 754)] == ["0:00", "0:59", "1:01", "12:34"]


def test_make_test_runs_every_kind_of_test_there_is() -> None:
    """What the parallel lane leaves out, another stage runs; `long` is for `make test-long`."""
    text = (ROOT / "Makefile").read_text()
    (phases,) = re.findall(r"^PHASES := (.*)$", text, re.MULTILINE)
    stages = {
        stage for phase in re.findall(r'"(.*?)"', phases) for s in parse(phase) for stage in s
    }
    kinds = ("browser", "vllm", "clients", "serial")
    assert {"lint", "widgets", "notebooks", "clients-test", "vllm", "unit"} <= stages
    assert {"serial", "browser"} <= stages
    (left_out,) = re.findall(r"^PARALLEL := (.*)$", text, re.MULTILINE)
    assert set(left_out.split(" and ")) == {f"not {kind}" for kind in kinds}
    for stage in stages:
        assert re.search(rf"^{stage}:", text, re.MULTILINE), stage

"""What only a GPU can show, in one command: ten minutes at most, offline, one table.

    cd tests && python -m benchmarks.gpu_check [--write] [--wheels FOLDER] [--budget-s 600]
    cd tests && python -m benchmarks.gpu_check --device cpu       # a dry run of the same code
    cd tests && python -m benchmarks.gpu_check --collect FOLDER [--python 3.12]   # the wheels
    cd tests && python -m benchmarks.gpu_check --page FOLDER      # an earlier run into docs/gpu.md

Each part runs in a process of its own, within its own limit and what is left of the ten minutes.
Every check of every part is a row: passed, failed, or not possible with the reason. Exit status 1
says that one failed, 2 that nothing could be run. This file imports the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import gpu_wheels
from benchmarks.gpu_results import FAILED, NOT_POSSIBLE, Row, broken, read_rows, table, told_of
from benchmarks.page import write_section

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"
WHEELS = ROOT / "build" / "gpu-wheels"
OUT = ROOT / "tests" / "artifacts" / "gpu-check"
BUDGET_S = 600.0
LAST_S = 3.0
"""Kept from the last part, to end it and to write the table."""
MACHINE_S = 60.0


@dataclass(frozen=True)
class Part:
    """Checks that run in one process: `python -m MODULE NAME --device …`."""

    name: str
    checks: tuple[str, ...]
    limit_s: float
    wants: str = ""
    """A package without which none of it is possible."""
    module: str = "benchmarks.gpu_parts"


PARTS = (
    Part(
        "torch",
        (
            "replies of the compact form equal generate's",
            "replies of the general form equal generate's",
            "decode steps are recorded as graphs",
            "tokens/s beside generate and the memory's speed",
        ),
        limit_s=150,
    ),
    Part("memory", ("NVML finds the GPU", "closing gives the memory back"), limit_s=80),
    Part("tests", ("the tests marked gpu",), 150),
    Part("front", ("the front at a GPU's pace, simulated", "the front over the torch engine"), 100),
    Part("vllm_sleep", ("vLLM sleeps at level 1", "vLLM sleeps at level 2"), 150, wants="vllm"),
    Part("vllm_tests", ("vLLM's tests marked gpu",), 150, wants="vllm"),
    Part("vllm_bench", ("our endpoint against vllm serve",), 240, wants="vllm"),
)
MACHINE = Part("machine", ("machine",), MACHINE_S)


@dataclass(frozen=True)
class Setting:
    device: str
    out: Path
    deadline: float
    """By `time.monotonic`."""

    @property
    def left_s(self) -> float:
        return self.deadline - LAST_S - time.monotonic()

    @property
    def site(self) -> Path:
        """Where the wheels go: the machine's own environment stays as it is."""
        return self.out / "site"

    def environment(self) -> dict[str, str]:
        paths = [self.site, ROOT / "src", ROOT / "tests", os.environ.get("PYTHONPATH", "")]
        # a dry run shares its cores with whatever else runs: threads that wait for each other crawl
        threads = {"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        path = {"PYTHONPATH": os.pathsep.join(str(one) for one in paths if one)}
        return os.environ | offline | threads | path


def run_part(part: Part, setting: Setting) -> list[Row]:
    """A row for each of its checks, whatever becomes of its process."""
    if part.wants and not _installed(part.wants):
        return [Row(one, NOT_POSSIBLE, f"{part.wants} is not installed") for one in part.checks]
    dry = setting.device == "cpu"  # whose speed tells nothing: only all of it has an end
    limit_s = setting.left_s if dry else min(part.limit_s, setting.left_s)
    if limit_s <= 0:
        return [Row(one, NOT_POSSIBLE, "the time was used up before it") for one in part.checks]
    results, log = (setting.out / f"{part.name}{end}" for end in (".jsonl", ".log"))
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", part.module, part.name, "--device", setting.device,
        "--results", str(results),
    ]  # fmt: skip
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=setting.environment(), stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit_s)
            why = f"its process ended with status {status}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            why = f"its part took longer than {limit_s:.0f} s"
        finally:
            _end(process)
    found = {row.check: row for row in read_rows(results)}
    return [found.get(one) or Row(one, FAILED, f"{why} (log: {log.name})") for one in part.checks]


def _installed(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None  # else a folder of that name


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all of its session. Engines are in sessions of their own, and end with their parent."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def run_all(
    parts: Sequence[Part], setting: Setting, chosen: Sequence[str]
) -> tuple[str, list[Row]]:
    """The machine in words, and all rows. The table is written anew after each part."""
    machine = run_part(MACHINE, setting)[0]
    if machine.outcome == FAILED:
        raise SystemExit(f"the machine cannot be described: {machine.said}")
    if machine.outcome == NOT_POSSIBLE:
        raise SystemExit(f"{machine.said}; a dry run on a CPU: --device cpu")
    rows: list[Row] = []
    for part in parts:
        if part.name in chosen:
            rows += run_part(part, setting)
        else:
            rows += [Row(one, NOT_POSSIBLE, "left out by --only") for one in part.checks]
        for row in rows[-len(part.checks) :]:
            print(told_of(row), flush=True)
        keep(setting, machine.said, rows)
    return machine.said, rows


def keep(setting: Setting, machine: str, rows: Sequence[Row]) -> None:
    whole = {"device": setting.device, "machine": machine, "rows": [asdict(row) for row in rows]}
    (setting.out / "results.json").write_text(json.dumps(whole, indent=1))
    lines = table(setting.device, machine, rows)
    (setting.out / "table.md").write_text("\n".join([*lines, ""]))


def write_page(folder: Path, page: Path = PAGE) -> None:
    """An earlier run's table into docs/gpu.md. SystemExit for a dry run and for parts of one."""
    whole = json.loads((folder / "results.json").read_text())
    rows = [Row(**row) for row in whole["rows"]]
    lost = {check for part in PARTS for check in part.checks} - {row.check for row in rows}
    if whole["device"] == "cpu":
        raise SystemExit("a dry run on a CPU does not go into docs/gpu.md: nothing ran on a GPU")
    if lost or any(row.said == "left out by --only" for row in rows):
        raise SystemExit("docs/gpu.md takes whole runs only: run it without --only")
    write_section("gpu-check", table(whole["device"], whole["machine"], rows), page)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="at most 600")
    parser.add_argument("--only", default=",".join(names), help=f"parts by comma: {names}")
    parser.add_argument("--out", type=Path, default=OUT, help="for results, table and logs")
    parser.add_argument("--write", action="store_true", help="the table into docs/gpu.md too")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="what this machine may lack")
    parser.add_argument("--collect", type=Path, help="download those wheels into this folder")
    parser.add_argument(
        "--python", default=".".join(platform.python_version_tuple()[:2]),
        help="the GPU machine's, for --collect",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, help="an earlier run's --out into docs/gpu.md")
    asked = parser.parse_args(arguments)
    asked.only = asked.only.split(",")
    if unknown := sorted(set(asked.only) - set(names)):
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(names)}")
    if not 0 < asked.budget_s <= BUDGET_S:
        parser.error(f"--budget-s: {asked.budget_s:g} is not above 0 and at most {BUDGET_S:g}")
    if asked.write and asked.device == "cpu":
        parser.error("--write: a dry run on a CPU does not go into docs/gpu.md")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    try:
        if asked.collect is not None:
            print("\n".join(gpu_wheels.collect(asked.collect, asked.python)))
            return 0
        if asked.page is not None:
            write_page(asked.page)
            return 0
        setting = Setting(asked.device, asked.out.resolve(), time.monotonic() + asked.budget_s)
        setting.out.mkdir(parents=True, exist_ok=True)
        if brought := gpu_wheels.install(asked.wheels, setting.site):
            print(f"from {asked.wheels}: {', '.join(brought)}", flush=True)
        machine, rows = run_all(PARTS, setting, asked.only)
        print("\n" + "\n".join(table(asked.device, machine, rows)))
        if asked.write:
            write_page(setting.out)
    except SystemExit as end:
        print(end, file=sys.stderr)
        return 2
    return int(broken(rows))


if __name__ == "__main__":
    sys.exit(main())

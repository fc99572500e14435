"""Nested loops; what they do in a kernel is in test_kernel_interrupt.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmserve import allow_nested
from support.kernels import SRC

USE = """
import asyncio, sys
sys.path.insert(0, {src!r})
import llmserve
async def outer():
    llmserve.allow_nested()
    return asyncio.run(inner())
async def inner():
    await asyncio.sleep(0)
    return "inner"
print(asyncio.run(outer()))
"""


def test_a_missing_package_is_named_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nest_asyncio2", None)
    with pytest.raises(ImportError, match="pip install nest-asyncio2"):
        allow_nested()


def test_asyncio_run_works_inside_a_running_loop() -> None:
    code = USE.format(src=str(SRC))  # in a process of its own: the patch cannot be undone
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "inner", ran.stderr

"""An engine's process that begins before its session is imported, and ends where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

import llmserve
from llmserve.entrypoints.session.engine_launch import EngineLaunch

EARLY = """
import sys
from llmserve.engines.torch.engine import TorchEngine
launch = TorchEngine.launch

async def noted(self):
    print("llmserve.entrypoints.http.app" in sys.modules, flush=True)
    await launch(self)
    raise OSError("enough was seen")

TorchEngine.launch = noted
import llmserve
try:
    llmserve.serve(engine="torch", threads=1)
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def test_a_taken_port_leaves_no_process_behind() -> None:
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="is taken"):
        llmserve.serve(engine="torch", port=taken.getsockname()[1], threads=1)
    assert children() == before


def test_an_error_within_a_launch_ends_its_process_and_its_thread() -> None:
    before = children()
    launch = EngineLaunch("torch", {"threads": 1})
    assert len(children()) == len(before) + 1
    launch.__exit__(KeyError, KeyError(), None)
    assert children() == before
    assert not launch.runtime.alive


def test_the_process_begins_before_the_endpoint_is_imported() -> None:
    run = subprocess.run(
        [sys.executable, "-c", EARLY], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.stdout.split()[0] == "False"

"""Engines of kernels that are gone: found by their mark, told, and ended on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import llmserve
from llmserve.engines.process.processes import MARK, end, has_ended, is_gone, mark, stale
from llmserve.engines.vllm.parent_watch import FOLDER_PREFIX
from llmserve.engines.vllm.process_files import Launch
from support.shells import Shell, shell

alone = pytest.mark.serial  # it sees, and ends, what other tests have orphaned
KERNEL = """
import os, subprocess, sys
from llmserve.engines.process.processes import MARK, mark
command = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
environment = {**os.environ, MARK: mark()}
child = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def orphan() -> Iterator[tuple[psutil.Process, int]]:
    """A marked process that does not watch its parent, which was killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
    ) as kernel:  # fmt: skip
        assert kernel.stdout is not None
        child = psutil.Process(int(kernel.stdout.readline()))
        try:
            assert child.pid not in {one.process.pid for one in stale()}, "its kernel lives"
            kernel.kill()
            kernel.wait()
            yield child, kernel.pid
        finally:
            end([child], 0)


@alone
def test_an_engine_whose_kernel_was_killed_is_found_and_can_be_ended() -> None:
    with orphan() as (child, kernel):
        (found,) = (one for one in stale() if one.process == child)
        assert found.kernel == kernel
        assert f"pid {child.pid}, " in str(found)
        assert str(found).endswith(f"of kernel {kernel}")
        assert end([found.process], 0) == []
        assert has_ended(child)
        assert child.pid not in {one.process.pid for one in stale()}


@pytest.fixture
def ip() -> Iterator[Shell]:
    with shell() as made:
        made.ok("%load_ext llmserve")
        yield made


@alone
def test_status_tells_of_it_and_ends_it_only_when_asked(ip: Shell) -> None:
    with orphan() as (child, _):
        told = ip.ok("%llmserve status").text
        assert f"pid {child.pid}, " in told
        assert "--remove-stale" in told
        assert child.is_running()
        assert "Ended" in ip.ok("%llmserve status --remove-stale").text
        assert has_ended(child)


def test_an_engine_carries_the_mark_of_its_living_kernel() -> None:
    with llmserve.serve(engine="torch", threads=1) as session:
        (pid,) = session.info.pids
        written = psutil.Process(pid).environ()[MARK]
        assert written == mark()
        assert not is_gone(written)
    assert MARK not in os.environ


@pytest.mark.parametrize(
    ("written", "gone"),
    [
        (mark(), False),
        (f"{os.getpid()}/1/{mark().rpartition('/')[2]}", True),  # another had our pid before
        (f"{os.getpid()}/1/pid:[1]", False),  # its pids are of another namespace
        ("nonsense", False),
        ("", False),
    ],
    ids=["ours", "another's with our pid", "another namespace's", "nonsense", "none"],
)
def test_only_a_kernel_that_is_known_to_have_ended_counts_as_gone(
    written: str, gone: bool
) -> None:
    assert is_gone(written) is gone


def test_what_vllm_starts_is_marked_too_and_its_folder_goes_with_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launch = Launch()
    script = f"import os; print(os.environ[{MARK!r}])"
    subprocess.run([launch._python, "-c", script], check=True)
    assert (launch.folder / "log").read_text().strip() == mark()
    dead = tmp_path / f"{FOLDER_PREFIX}dead"
    dead.mkdir()
    (dead / "owner").write_text(f"{os.getpid()}/1/{mark().rpartition('/')[2]}")
    unknown = tmp_path / f"{FOLDER_PREFIX}unknown"
    unknown.mkdir()
    second = Launch()
    assert set(tmp_path.iterdir()) == {launch.folder, second.folder, unknown}
    launch.remove()
    second.remove()
    assert set(tmp_path.iterdir()) == {unknown}

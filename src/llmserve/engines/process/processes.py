"""Engine processes seen from outside: which kernel they serve, and how they are ended.

Every engine process carries a mark in its environment that names the kernel it serves, by pid,
birth and pid namespace. Engines end themselves when their kernel is gone; where that failed, the
mark is how they are found.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

MARK = "LLMSERVE_ENGINE_OF"


class Stale(NamedTuple):
    """An engine process whose kernel is gone."""

    process: psutil.Process
    kernel: int
    resident: int

    def __str__(self) -> str:
        return f"pid {self.process.pid}, {self.resident / 2**20:.0f} MiB, of kernel {self.kernel}"


def mark() -> str:
    """Return the mark that names this process to those it starts."""
    return f"{os.getpid()}/{_birth(os.getpid())}/{_namespace()}"


def is_gone(written: str) -> bool:
    """The process that wrote the mark has ended. False where that cannot be known from here."""
    pid, _, rest = written.partition("/")
    birth, _, namespace = rest.partition("/")
    if not (pid.isdigit() and birth) or namespace != _namespace():
        return False
    return is_over(int(pid)) or _birth(int(pid)) != birth


def stale() -> list[Stale]:
    """Find this user's stale engine processes; looks at every process there is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            written = process.environ().get(MARK)
            if written is not None and is_gone(written):
                kernel = int(written.partition("/")[0])
                found.append(Stale(process, kernel, process.memory_info().rss))
    return found


def with_descendants(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes and all their descendants that are still alive."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                found.setdefault(one.pid, one)
    return list(found.values())


def end(
    processes: Sequence[psutil.Process],
    grace_s: float,
    by: Callable[[psutil.Process], None] = psutil.Process.kill,
    patience_s: float = 5.0,
) -> list[psutil.Process]:
    """Let them end by themselves, then end them; those that outlive even that."""
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    alive = [process for process in alive if not has_ended(process)]
    for process in alive:
        with contextlib.suppress(psutil.Error):
            by(process)
    _, alive = psutil.wait_procs(alive, timeout=patience_s)
    return [process for process in alive if not has_ended(process)]


def has_ended(process: psutil.Process) -> bool:
    """Be it that its parent has not taken note of it yet, as a container's first process may
    never do."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def is_over(pid: int) -> bool:
    """No process has this pid, or only one that has ended."""
    try:
        return has_ended(psutil.Process(pid))
    except psutil.Error:
        return True


def _birth(pid: int) -> str:
    """When the process was started, such that a change of the wall clock leaves it alone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # starttime, in ticks since boot
    except OSError:
        pass
    with contextlib.suppress(psutil.Error):
        return f"{psutil.Process(pid).create_time():.0f}"
    return ""


def _namespace() -> str:
    """Pids mean something only within it: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

"""What surrounds the start of vLLM's processes: their output, their environment, their end.

Their output goes to a file, as a cell is no place for fifty lines of log, and the file's end is
what a failed start shows. SIGINT is blocked in the starting thread and therefore in the children:
Jupyter sends an interrupt to the whole process group, and it would end the engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import psutil

from llmserve.engines.process.processes import MARK, is_gone, mark
from llmserve.engines.vllm.parent_watch import FOLDER_PREFIX, early

LAST_LINES = 20
_OWNER = "owner"
_TAG = re.compile(r"^(\(.*?pid=\d+\) )?(ERROR [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_LINKS = ("During handling of the above", "The above exception was")
"""Between two tracebacks of one chain."""

_PYTHON = """\
#!/bin/sh
first={first}
for one; do
  shift
  case $one in "from multiprocessing.spawn "*) one="$first; $one" ;; esac
  set -- "$@" "$one"
done
{mark} exec {python} "$@" </dev/null >>{log} 2>&1
"""
"""Starts a child as multiprocessing asks, with what is ours before that."""


class Launch:
    """One engine's folder: its log and vLLM's sockets. `remove` it after the processes ended."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    """Environment and executable belong to the process: one start at a time."""

    def __init__(self) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        (self.folder / _OWNER).write_text(mark())
        self.given_up = False
        """Set when nobody waits for the start any more: it must not leave an engine behind."""
        self._log = self.folder / "log"
        self._python = self.folder / "python"
        watch = self.folder / "watch.py"
        watch.write_text(early(os.getpid(), self.folder))
        self._python.write_text(
            _PYTHON.format(
                first=shlex.quote(f"exec(open({str(watch)!r}).read())"),
                mark=f"{MARK}={shlex.quote(mark())}",
                python=shlex.quote(sys.executable),
                log=shlex.quote(str(self._log)),
            )
        )
        self._python.chmod(0o700)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """For the thread that creates the engine, which must be one of its own: SIGINT stays
        blocked in it."""
        with self._lock:
            # first the tracker, because starting it unblocks SIGINT again
            multiprocessing.resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            python = multiprocessing.spawn.get_executable()
            with _environment(
                VLLM_WORKER_MULTIPROC_METHOD="spawn",  # a fork of a kernel full of threads hangs
                VLLM_RPC_BASE_PATH=str(self.folder),
                VLLM_NO_USAGE_STATS=os.environ.get("VLLM_NO_USAGE_STATS", "1"),
            ):
                multiprocessing.set_executable(str(self._python))
                try:
                    yield
                finally:
                    multiprocessing.set_executable(os.fsdecode(python or sys.executable))

    def logging_config(self) -> Path:
        """For vLLM, in every process: to the log, and never from a thread into some cell."""
        kind = "vllm.logging_utils.NewLineFormatter"
        line = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
        handler = {"class": "logging.FileHandler", "filename": str(self._log), "formatter": "line"}
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"class": kind, "datefmt": "%m-%d %H:%M:%S", "format": line}},
            # what it says when the log is gone would else go to stderr, as of a logger without any
            "handlers": {"log": handler, "none": {"class": "logging.NullHandler"}},
            "loggers": {"vllm": {"handlers": ["log", "none"], "level": "INFO", "propagate": False}},
        }
        path = self.folder / "logging.json"
        path.write_text(json.dumps(config))
        return path

    def last_words(self) -> str:
        """What the engine's errors came to, the first cause first: a worker's comes before its
        engine process's. Or the end of its log where it logged none."""
        with contextlib.suppress(OSError):
            text = self._log.read_bytes()[-262_144:].decode(errors="replace")
            lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip(" ^~")]
            errors = [_TAG.sub("", line) for line in lines if " ERROR " in f" {line[:80]}"]
            said = without_frames(line for line in errors if line.strip(" ^~"))
            if len(said) > LAST_LINES:
                said[LAST_LINES // 2 : -LAST_LINES // 2] = ["…"]
            return "\n".join(said or lines[-LAST_LINES:])
        return ""

    def processes(self) -> list[psutil.Process]:
        """Child processes that write to this launch's log, whatever they call themselves."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(file.path == str(self._log) for file in process.open_files()):
                    found.append(process)
        return found

    def remove(self) -> None:
        vllm_log = logging.getLogger("vllm")
        for handler in vllm_log.handlers[:]:
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(self._log):
                vllm_log.removeHandler(handler)
                handler.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def without_frames(lines: Iterable[str]) -> list[str]:
    """A log's lines without its tracebacks' frames, and none twice."""
    said: dict[str, None] = {}
    in_frames = False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            in_frames = True
        elif in_frames and line.startswith(" "):
            continue
        elif not line.startswith(_LINKS):
            in_frames = False
            said[line] = None
    return list(said)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def sweep() -> None:
    """Remove the folders of kernels that are gone, whose own engines had no time to."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if is_gone((folder / _OWNER).read_text()):
                shutil.rmtree(folder, ignore_errors=True)
